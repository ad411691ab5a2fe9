"""Many regular expressions as one automaton, which is made while it runs.

composefs-rs matches a path against all rules of a policy at once, with the lazy DFA of `regex-automata`; so do we.
The time for a path grows with its length alone, whatever the patterns are: hostile ones cost states, and never
backtracking.  A rule matches a *subject*: a path, and then one letter that tells the type of its inode.

`State` is a position in a subject and maps the next byte to the next state: `state[byte]`.  States are made on first
use and kept.  Most rules of a policy start with a plain prefix, and those that a subject may still complete are a
slice of the sorted prefixes; only behind its prefix a rule becomes nodes of a nondeterministic automaton.

The rule with the highest number wins.  So, where `.*` at the end of a rule already accepts whatever follows, the
nodes of lower rules are dropped, and most of a tree is labelled in states of very few nodes.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from composefsd.boot import byteset
from composefsd.boot.pattern import Pattern
from composefsd.boot.syntax_tree import Alternation, Assertion, Concat, Literal, Look, Node, Repeat, Set
from composefsd.errors import LimitExceededError

LETTERS: Final = b"-dlcbps"
"""The letters of types; `State.rules` has the winning rule for each, in this order."""

NO_RULE: Final = -1

_SIZE_LIMIT: Final = 4_000_000  # nodes; all rules of Debian's policy have 130,000
_WEIGHT_LIMIT: Final = 1_500_000  # nodes and transitions in all states, at less than 100 bytes each
_STATE_WEIGHT: Final = 10  # of a state without either
_CLOSURE_LIMIT: Final = 32  # nodes
_SLICE_LIMIT: Final = 64  # prefixes
_LEARNS_AT: Final = frozenset((32, 256, 2048, 16384))  # misses
_START: Final = -1  # the byte before the first
_END: Final = -1  # the byte behind the last

_BYTE: Final = tuple(1 << byte for byte in range(256))


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern, and the letter of the only type it is for; None is for all of them.

    A pattern that `is_whole` is for a subject with its letter, and need not match up to the end.
    """

    pattern: Pattern
    letter: int | None


def _holds(look: Look, before: int, after: int) -> bool:
    """Whether a condition is met between two bytes."""
    word_before = before >= 0 and bool(byteset.WORD >> before & 1)
    word_after = after >= 0 and bool(byteset.WORD >> after & 1)
    match look:
        case Look.START:
            return before == _START
        case Look.END:
            return after == _END
        case Look.LINE_START:
            return before in (_START, 0x0A)
        case Look.LINE_END:
            return after in (_END, 0x0A)
        case Look.CRLF_START:
            return before in (_START, 0x0A) or (before == 0x0D and after != 0x0A)
        case Look.CRLF_END:
            return after in (_END, 0x0D) or (after == 0x0A and before != 0x0D)
        case Look.WORD:
            return word_before != word_after
        case Look.NOT_WORD:
            return word_before == word_after
        case Look.WORD_START:
            return not word_before and word_after
        case Look.WORD_END:
            return word_before and not word_after
        case Look.WORD_START_HALF:
            return not word_before
    return not word_after


class _Nodes:
    """The nondeterministic automaton, in columns.

    A node moves on a byte, splits, asks for a condition, or ends a rule.  `moves[n]` is the set of bytes that lead to
    `after[n]`, 0 for other nodes; `forks[n]` are the ways out of a split, `looks[n]` is the condition, and `ends[n]`
    the letter that has to follow.  `loops` has the nodes of a `.*` that nothing but the end of the rule comes after.
    The rules of `whole` need no letter to follow: they are fulfilled, by a loop in `done`, once they are so.
    `sure_ends` and `sure_loops` are those of rules for all types, with the rule.
    `closures` remembers what is behind splits, None where it is too much to be remembered.
    """

    def __init__(self) -> None:
        self.rule = array("i")
        self.moves: list[int] = []
        self.after = array("i")
        self.forks: dict[int, tuple[int, ...]] = {}
        self.looks: dict[int, Look] = {}
        self.ends: dict[int, int | None] = {}
        self.loops: set[int] = set()
        self.whole: set[int] = set()
        self.done: set[int] = set()
        self.sure_ends: dict[int, int] = {}
        self.sure_loops: dict[int, int] = {}
        self.closures: dict[int, frozenset[int] | None] = {}

    def _add(self, rule: int, moves: int, after: int) -> int:
        self.rule.append(rule)
        self.moves.append(moves)
        self.after.append(after)
        return len(self.moves) - 1

    def add_rule(self, number: int, rest: Node, letter: int | None) -> int:
        """The first node of what follows the prefix of a rule."""
        end = self._add(number, 0, 0)
        self.ends[end] = letter
        if letter is None:
            self.sure_ends[end] = number
        return self._build(number, rest, end)

    def add_whole(self, number: int, rest: Node) -> int:
        """The first node of a rule for whole subjects."""
        node = self._add(number, byteset.ALL, 0)
        self.after[node] = node
        self.whole.add(number)
        self.done.add(node)
        self.loops.add(node)
        self.sure_loops[node] = number
        return self._build(number, rest, node)

    def _build(self, rule: int, part: Node, after: int) -> int:
        """The nodes for a part, of which the last leads to `after`; answers with the first."""
        match part:
            case Literal(text):
                for byte in reversed(text):
                    after = self._add(rule, _BYTE[byte], after)
                return after
            case Set(mask):
                return self._add(rule, mask, after)
            case Assertion(look):
                node = self._add(rule, 0, after)
                self.looks[node] = look
                return node
            case Concat(parts):
                for inner in reversed(parts):
                    after = self._build(rule, inner, after)
                return after
            case Alternation(branches):
                return self._fork(rule, *(self._build(rule, branch, after) for branch in branches))
            case Repeat():
                return self._repeat(rule, part, after)

    def _fork(self, rule: int, *ways: int) -> int:
        node = self._add(rule, 0, 0)
        self.forks[node] = ways
        return node

    def _repeat(self, rule: int, part: Repeat, after: int) -> int:
        if part.most is None:
            after = self._star(rule, part.body, after)
        else:
            end = after
            for _ in range(part.most - part.least):
                after = self._fork(rule, self._build(rule, part.body, after), end)
        for _ in range(part.least):
            after = self._build(rule, part.body, after)
        return after

    def _star(self, rule: int, body: Node, after: int) -> int:
        fork = self._fork(rule)
        first = self._build(rule, body, fork)
        self.forks[fork] = (first, after)
        if isinstance(body, Set) and body.mask & byteset.NOT_NUL == byteset.NOT_NUL and after in self.ends:
            self.loops.add(first)  # `.*` at the end: from here on, the rule matches whatever comes
            if self.ends[after] is None:
                self.sure_loops[first] = rule
        return fork

    def closure(self, starts: Iterable[int]) -> set[int]:
        """The nodes at some places and behind the splits there."""
        out, large = set[int](), list[int]()
        for start in starts:
            if start not in self.closures:
                found = frozenset(self.reach((start,), at_most=_CLOSURE_LIMIT))
                self.closures[start] = found if len(found) <= _CLOSURE_LIMIT else None
            known = self.closures[start]
            if known is None:
                large.append(start)
            else:
                out |= known
        return out | self.reach(large) if large else out

    def reach(
        self, starts: Iterable[int], between: tuple[int, int] | None = None, *, at_most: int | None = None
    ) -> set[int]:
        """The nodes at some places and behind the splits there; given two bytes, also behind conditions that hold.

        If that takes more than `at_most` nodes, the answer is more than so many nodes, whichever they are.
        """
        forks, looks, out = self.forks, self.looks, set[int]()
        pending = list(starts)
        seen = set(pending)
        while pending:
            node = pending.pop()
            if at_most is not None and len(seen) > at_most:
                return seen
            ways = forks.get(node)
            if ways is None:
                out.add(node)
                if between is None or node not in looks or not _holds(looks[node], *between):
                    continue
                ways = (self.after[node],)
            for way in ways:
                if way not in seen:
                    seen.add(way)
                    pending.append(way)
        return out


class State(dict[int, "State"]):
    """A position in a subject: the next state for each byte, the rules that match if the letter comes next.

    `rules` has a rule number or NO_RULE for each of LETTERS.  A state is `settled` if it does not matter which bytes
    follow: every subject that goes on from here has the rules of `beyond`.

    In a busy state most bytes lead back to it.  `steady` are those of which this is known, so that they need no step
    where they come first, and `tails` has the state behind what is left of a name then.
    """

    __slots__ = (
        "_automaton", "_misses", "before", "depth", "high", "known", "low", "nodes", "rules", "settled", "steady",
        "tails",
    )  # fmt: skip

    def __init__(self, automaton: "Automaton", key: "_Key", rules: tuple[int, ...], *, settled: bool) -> None:
        self._automaton = automaton
        self.low, self.high, self.depth, self.before, self.nodes, _ = key
        self.rules = rules
        self.settled = settled
        self.known: dict[tuple[int, ...], State] = {}
        self.steady = b""
        self.tails: dict[bytes, State] = {}
        self._misses = 0

    def __missing__(self, byte: int) -> "State":
        state = self[byte] = self._automaton.step(self, byte)
        return state

    def after(self, text: bytes) -> "State":
        """The state that a text leads to."""
        state = self
        for byte in text:
            state = state[byte]
        return state

    def learn(self, tail: bytes) -> "State":
        """The state that a tail leads to, which is remembered."""
        state, rest = self, tail
        while rest:
            state = state[rest[0]]
            rest = rest[1:].lstrip(state.steady)
            known = state.tails.get(rest)
            if known is not None:
                state = known
                break
        self.tails[tail] = state
        self._automaton.spend(1)
        self._misses += 1
        if self._misses in _LEARNS_AT:
            self.steady = bytes(byte for byte, after in self.items() if after is self)
        return state

    def forget(self) -> None:
        """Let go of other states."""
        self.clear()
        self.known.clear()
        self.tails.clear()

    @property
    def beyond(self) -> tuple[int, ...]:
        """The rules for every longer subject, if the state is settled."""
        return self[0x2F].rules


_Rules = tuple[int, ...]
_Key = tuple[int, int, int, int, frozenset[int], frozenset[int]]


class Automaton:
    """The rules of a policy; a rule's number is its place."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Raises LimitExceededError if counted repetitions make the rules too large."""
        _check_size(rules)
        self._rules = rules
        prefixes = sorted((rule.pattern.prefix, number) for number, rule in enumerate(rules))
        self._prefixes = [prefix for prefix, _ in prefixes]
        self._numbers = array("i", (number for _, number in prefixes))
        self._nodes = _Nodes()
        self._entries: dict[int, int] = {}
        self._states: dict[_Key, State] = {}
        self._weight = 0
        self.start = self._state(0, len(rules), 0, _START, ())

    def match(self, subject: bytes) -> int:
        """The winning rule for a path with the letter of its type, or NO_RULE."""
        return self.start.after(subject[:-1]).rules[LETTERS.index(subject[-1])]

    def step(self, state: State, byte: int) -> State:
        """The state after one more byte."""
        self.spend(1)
        moves = self._nodes.moves
        here = self._resolved(state.nodes, state.before, byte)
        moved = tuple([node for node in here if moves[node] >> byte & 1])  # a list takes less time than a generator
        low, high = self._narrowed(state, byte)
        if low < high or self._nodes.looks:
            return self._state(low, high, state.depth + 1, byte, moved)
        # Most bytes mean the same to a state: they move the same nodes, and end all plain prefixes.
        known = state.known.get(moved)
        if known is None:
            known = state.known[moved] = self._state(low, high, state.depth + 1, byte, moved)
        return known

    def _resolved(self, given: frozenset[int], before: int, after: int) -> Iterable[int]:
        """The nodes, and those behind each condition that holds between the two bytes."""
        if self._nodes.looks.keys().isdisjoint(given):
            return given
        return self._nodes.reach(given, (before, after))

    def _narrowed(self, state: State, byte: int) -> tuple[int, int]:
        """The slice of the prefixes that go on with `byte`."""
        low, high = state.low, state.high
        if low == high:
            return 0, 0
        start = self._prefixes[low][: state.depth]
        first = bisect_left(self._prefixes, start + bytes([byte]), low, high)
        last = high if byte == 0xFF else bisect_left(self._prefixes, start + bytes([byte + 1]), first, high)
        return (first, last) if first < last else (0, 0)

    def _state(self, low: int, high: int, depth: int, before: int, moved: Iterable[int]) -> State:
        """The state behind the nodes that moved, in the slice of prefixes that is left."""
        places = [self._nodes.after[node] for node in moved]
        while low < high and len(self._prefixes[low]) == depth:
            places.append(self._entry(self._numbers[low]))
            low += 1
        return self._interned(low, high, depth, before, self._nodes.closure(places))

    def _entry(self, number: int) -> int:
        if number not in self._entries:
            rule = self._rules[number]
            if rule.pattern.is_whole:
                self._entries[number] = self._nodes.add_whole(number, rule.pattern.tree())
            else:
                self._entries[number] = self._nodes.add_rule(number, rule.pattern.tree(), rule.letter)
        return self._entries[number]

    def _interned(self, low: int, high: int, depth: int, before: int, reached: set[int]) -> State:
        """The state with these positions, less what cannot win any more."""
        ends = reached & self._nodes.ends.keys()
        low, high, moving = self._pruned(low, high, reached - ends)
        if low == high:
            low = high = depth = 0
        asking = not self._nodes.looks.keys().isdisjoint(moving)
        best, rule = _highest(self._nodes.sure_ends, ends), self._nodes.rule
        ends = {node for node in ends if rule[node] >= best}
        key = (low, high, depth, before if asking else 0, moving, frozenset(ends))
        state = self._states.get(key)
        if state is None:
            rules = self._rules_at(key[-1], moving, before, asking=asking)
            settled = low == high and not asking and moving <= self._nodes.loops
            state = State(self, key, rules, settled=settled)
            self._keep(key, state)
        return state

    def _pruned(self, low: int, high: int, reached: set[int]) -> tuple[int, int, frozenset[int]]:
        best = _highest(self._nodes.sure_loops, reached)
        if best == NO_RULE:
            return low, high, frozenset(reached)
        if 0 < high - low < _SLICE_LIMIT and max(self._numbers[low:high]) < best:
            low = high = 0
        rule = self._nodes.rule
        return low, high, frozenset(node for node in reached if rule[node] >= best)

    def _rules_at(self, ends: frozenset[int], moving: frozenset[int], before: int, *, asking: bool) -> _Rules:
        rules = self._winners(ends)
        if asking:
            here = moving | ends
            each = (
                self._winners(self._nodes.ends.keys() & self._resolved(here, before, letter)) for letter in LETTERS
            )
            rules = tuple(found[at] for at, found in enumerate(each))
        if self._nodes.whole:
            each_whole = (self._whole_winner(moving, before, letter) for letter in LETTERS)
            rules = tuple(map(max, rules, each_whole))
        return rules

    def _whole_winner(self, moving: frozenset[int], before: int, letter: int) -> int:
        """The highest of the rules for whole subjects that match if this letter is the last byte."""
        nodes = self._nodes
        ours = (node for node in self._resolved(moving, before, letter) if nodes.rule[node] in nodes.whole)
        moved = [nodes.after[node] for node in ours if nodes.moves[node] >> letter & 1]
        reached = nodes.reach(moved, (letter, _END)) & nodes.done
        return max((nodes.rule[node] for node in reached), default=NO_RULE)

    def _winners(self, ends: Iterable[int]) -> _Rules:
        """The highest of the rules that end here, for each letter."""
        best = [NO_RULE] * len(LETTERS)
        for node in ends:
            rule, letter = self._nodes.rule[node], self._nodes.ends[node]
            for at in range(len(LETTERS)) if letter is None else (LETTERS.index(letter),):
                best[at] = max(best[at], rule)
        return tuple(best)

    def _keep(self, key: _Key, state: State) -> None:
        self.spend(_STATE_WEIGHT + len(state.nodes))
        self._states[key] = state

    def spend(self, weight: int) -> None:
        """Count what states hold; if it is too much, forget them all, which only costs time."""
        self._weight += weight
        if self._weight > _WEIGHT_LIMIT:
            for state in self._states.values():
                state.forget()
            self._states.clear()
            self._weight = weight


def _highest(rules: dict[int, int], nodes: set[int]) -> int:
    """The highest rule of those nodes that have one."""
    return max(map(rules.__getitem__, nodes & rules.keys()), default=NO_RULE)


def _check_size(rules: Iterable[Rule]) -> None:
    total = 0
    for number, rule in enumerate(rules):
        total += rule.pattern.size
        if total > _SIZE_LIMIT:
            raise LimitExceededError(f"rule {number} of a policy repeats too much", limit=_SIZE_LIMIT)
