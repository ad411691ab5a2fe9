"""Many regular expressions as one automaton, which is made while it runs.

composefs-rs matches a path against all rules of a policy at once, with the lazy DFA of `regex-automata`; so do we.
The time for a path grows with its length alone, whatever the patterns are: hostile ones cost states, and never
backtracking.  A rule matches a *subject*: a path, and then one letter that tells the type of its inode.

`State` is a position in a subject.  States are made on first use and kept, as rows of a table with the next state for
each byte.  Most rules of a policy start with a plain prefix, and those that a subject may still complete are a slice
of the sorted prefixes; only behind its prefix a rule becomes nodes of a nondeterministic automaton.

The rule with the highest number wins.  So, where `.*` at the end of a rule already accepts whatever follows, the
nodes of lower rules are dropped, and most of a tree is labelled in states of very few nodes.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from composefsd.boot import byteset
from composefsd.boot.pattern import Pattern
from composefsd.boot.syntax_tree import Alternation, Assertion, Concat, Literal, Look, Node, Repeat, Set
from composefsd.errors import LimitExceededError

LETTERS: Final = b"-dlcbps"
"""The letters of types; `State.rules` has the winning rule for each, in this order."""

NO_RULE: Final = -1
UNKNOWN: Final = -1

_SIZE_LIMIT: Final = 4_000_000  # nodes; all rules of Debian's policy have 130,000
_WEIGHT_LIMIT: Final = 1_500_000  # nodes and transitions in all states, at less than 100 bytes each
_STATE_WEIGHT: Final = 25  # of a state without either; so the table has 60 MiB at most
_SLICE_LIMIT: Final = 64  # prefixes
_ALIKE_LIMIT: Final = 256  # nodes
_START: Final = -1  # the byte before the first
_END: Final = -1  # the byte behind the last

_BYTE: Final = tuple(1 << byte for byte in range(256))
_NEW_ROW: Final = array("i", (UNKNOWN,)) * 256


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
    the letter that has to follow.  The rules of `whole` need no letter to follow: they are fulfilled, by a loop in
    `done`, once they are so.  `sure_ends` are the ends of rules for all types, with the rule, and `sure_loops` the
    nodes of a `.*` that nothing but such an end comes after.
    """

    def __init__(self) -> None:
        self.rule = array("i")
        self.moves: list[int] = []
        self.after = array("i")
        self.forks: dict[int, tuple[int, ...]] = {}
        self.looks: dict[int, Look] = {}
        self.ends: dict[int, int | None] = {}
        self.whole: set[int] = set()
        self.done: set[int] = set()
        self.sure_ends: dict[int, int] = {}
        self.sure_loops: dict[int, int] = {}

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
        if isinstance(body, Set) and body.mask & byteset.NOT_NUL == byteset.NOT_NUL and after in self.sure_ends:
            self.sure_loops[first] = rule  # `.*` at the end: from here on, the rule matches whatever comes
        return fork

    def reach(self, starts: Iterable[int]) -> set[int]:
        """The nodes at some places and behind the splits there."""
        forks, out = self.forks, set(starts)
        pending = list(forks.keys() & out)
        splits = pending[:]
        while pending:
            for way in forks[pending.pop()]:
                if way not in out:
                    out.add(way)
                    if way in forks:
                        pending.append(way)
                        splits.append(way)
        out.difference_update(splits)
        return out

    def reach_between(self, starts: Iterable[int], before: int, after: int) -> set[int]:
        """The nodes at some places, and behind the splits and the conditions there that hold between two bytes."""
        out = self.reach(starts)
        pending = list(self.looks.keys() & out)
        while pending:
            node = pending.pop()
            if _holds(self.looks[node], before, after):
                found = self.reach((self.after[node],)) - out
                out |= found
                pending.extend(self.looks.keys() & found)
        return out


@dataclass(frozen=True, slots=True, eq=False)
class _Spot:
    """Nodes that were reached together, less those that cannot win; equal ones are the same object.

    `moving` are those that a byte can move, one of a rule below `least` is not among them.  `rules` are those of the
    nodes that end here.  Of a spot that is `asking`, some nodes are conditions, which depend on the bytes around it.
    `ways` has sets of bytes that move the same nodes, each with these.
    """

    moving: frozenset[int]
    ends: frozenset[int]
    least: int
    rules: "_Rules"
    asking: bool
    ways: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class State:
    """A position in a subject, and the rules that match if the letter comes next.

    `rules` has a rule number or NO_RULE for each of LETTERS.  `number` is the row in the automaton's table, less than
    0 for a state that the automaton has forgotten.
    """

    __slots__ = ("before", "depth", "high", "low", "number", "rules", "spot")

    def __init__(self, key: "_Key", rules: "_Rules") -> None:
        self.low, self.high, self.depth, self.before, self.spot = key
        self.rules = rules
        self.number = -1


_Rules = tuple[int, ...]
_Key = tuple[int, int, int, int, _Spot]


class Automaton:
    """The rules of a policy; a rule's number is its place.

    `moves` is the table of states: for each 256 numbers, the next state for each byte or UNKNOWN.  `rules` has the
    rules of each state, as `State.rules` does.  `states` are those of the table by number.  When they take too much
    memory the table starts anew, and then `states` is another list.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Raises LimitExceededError if counted repetitions make the rules too large."""
        _check_size(rules)
        self.moves, self.rules = array("i"), array("i")
        self.states: list[State] = []
        self._given = rules
        prefixes = sorted((rule.pattern.prefix, number) for number, rule in enumerate(rules))
        self._prefixes = [prefix for prefix, _ in prefixes]
        self._numbers = array("i", (number for _, number in prefixes))
        self._nodes = _Nodes()
        self._entries: dict[int, int] = {}
        self._known: dict[_Key, State] = {}
        self._spots: dict[tuple[frozenset[int], frozenset[int]], _Spot] = {}
        self._behind: dict[tuple[int, ...], _Spot] = {}  # nodes that have moved
        self._weight = 0
        self.start = self._state(0, len(rules), 0, _START, ())

    def match(self, subject: bytes) -> int:
        """The winning rule for a path with the letter of its type, or NO_RULE."""
        return self.after(self.start, subject[:-1]).rules[LETTERS.index(subject[-1])]

    def after(self, state: State, text: bytes) -> State:
        """The state that a text leads to."""
        moves = self.moves
        for byte in text:
            number = moves[self.number(state) << 8 | byte]
            state = self.states[number] if number >= 0 else self.step(state, byte)
        return state

    def number(self, state: State) -> int:
        """The number of a state in the table, to which it is added if it is not there."""
        if state.number < 0:
            state.number = len(self.states)
            self.states.append(state)
            self.moves.extend(_NEW_ROW)
            self.rules.extend(state.rules)
            self._weight += _STATE_WEIGHT
        return state.number

    def step(self, state: State, byte: int) -> State:
        """The state after one more byte, which gets a place in the table.

        That may make all others lose theirs: then `states` is another list.
        """
        if self._weight > _WEIGHT_LIMIT:
            self._forget()
        low, high = self._narrowed(state, byte)
        alike, moved = self._moved(state.spot, state.before, byte)
        after = self._state(low, high, state.depth + 1, byte, moved)
        row, number = self.number(state) << 8, self.number(after)
        if state.low == state.high and not after.spot.asking:
            # neither the rest of a prefix nor a condition behind tells these bytes apart
            for start, end in _runs(alike):
                self.moves[row + start : row + end] = array("i", (number,)) * (end - start)
        else:
            self.moves[row | byte] = number
        return after

    def _moved(self, spot: _Spot, before: int, byte: int) -> tuple[int, tuple[int, ...]]:
        """The nodes that a byte moves, after the set of bytes that move the same."""
        moves = self._nodes.moves
        if spot.asking or len(spot.moving) > _ALIKE_LIMIT:
            here = self._resolved(spot, before, byte)
            return _BYTE[byte], tuple([node for node in here if moves[node] >> byte & 1])
        for way in spot.ways:
            if way[0] >> byte & 1:
                return way
        alike, moved = byteset.ALL, []
        for node in spot.moving:
            mask = moves[node]
            if mask >> byte & 1:
                alike &= mask
                moved.append(node)
            else:
                alike &= ~mask
        spot.ways.append((alike, tuple(moved)))
        self._weight += 3 + len(moved) // 8
        return spot.ways[-1]

    def _resolved(self, spot: _Spot, before: int, after: int) -> Iterable[int]:
        """The nodes, and those behind each condition that holds between the two bytes."""
        return self._nodes.reach_between(spot.moving, before, after) if spot.asking else spot.moving

    def _narrowed(self, state: State, byte: int) -> tuple[int, int]:
        """The slice of the prefixes that go on with `byte`."""
        low, high = state.low, state.high
        if low == high:
            return 0, 0
        start = self._prefixes[low][: state.depth]
        first = bisect_left(self._prefixes, start + bytes([byte]), low, high)
        last = high if byte == 0xFF else bisect_left(self._prefixes, start + bytes([byte + 1]), first, high)
        return (first, last) if first < last else (0, 0)

    def _state(self, low: int, high: int, depth: int, before: int, moved: tuple[int, ...]) -> State:
        """The state behind the nodes that moved, in the slice of prefixes that is left."""
        if low < high and len(self._prefixes[low]) == depth:
            places = [self._nodes.after[node] for node in moved]
            while low < high and len(self._prefixes[low]) == depth:
                places.append(self._entry(self._numbers[low]))
                low += 1
            spot = self._spot(places)
        else:
            spot = self._spot_behind(moved)
        if 0 < high - low < _SLICE_LIMIT and max(self._numbers[low:high]) < spot.least:
            low = high
        if low == high:
            low = high = depth = 0
        key = (low, high, depth, before if spot.asking else 0, spot)
        state = self._known.get(key)
        if state is None:
            state = self._known[key] = State(key, self._rules_at(spot, before))
        return state

    def _entry(self, number: int) -> int:
        if number not in self._entries:
            rule = self._given[number]
            if rule.pattern.is_whole:
                self._entries[number] = self._nodes.add_whole(number, rule.pattern.tree())
            else:
                self._entries[number] = self._nodes.add_rule(number, rule.pattern.tree(), rule.letter)
        return self._entries[number]

    def _spot_behind(self, moved: tuple[int, ...]) -> _Spot:
        """The spot behind nodes that have moved."""
        spot = self._behind.get(moved)
        if spot is None:
            spot = self._behind[moved] = self._spot([self._nodes.after[node] for node in moved])
            self._weight += 1 + len(moved)
        return spot

    def _spot(self, places: Iterable[int]) -> _Spot:
        """The spot at some places, without nodes that cannot win any more."""
        nodes, rule = self._nodes, self._nodes.rule
        reached = nodes.reach(places)
        ending = reached & nodes.ends.keys()
        best, least = _highest(nodes.sure_ends, ending), _highest(nodes.sure_loops, reached)
        ends = frozenset([node for node in ending if rule[node] >= best])
        moving = frozenset([node for node in reached if rule[node] >= least and node not in nodes.ends])
        spot = self._spots.get((moving, ends))
        if spot is None:
            asking = not nodes.looks.keys().isdisjoint(moving)
            spot = self._spots[moving, ends] = _Spot(moving, ends, least, self._winners(ends), asking)
            self._weight += _STATE_WEIGHT + len(moving) + len(ends)
        return spot

    def _rules_at(self, spot: _Spot, before: int) -> _Rules:
        rules = spot.rules
        if spot.asking:
            here = spot.moving | spot.ends
            each = (
                self._winners(self._nodes.ends.keys() & self._nodes.reach_between(here, before, letter))
                for letter in LETTERS
            )
            rules = tuple(found[at] for at, found in enumerate(each))
        if self._nodes.whole:
            each_whole = (self._whole_winner(spot, before, letter) for letter in LETTERS)
            rules = tuple(map(max, rules, each_whole))
        return rules

    def _whole_winner(self, spot: _Spot, before: int, letter: int) -> int:
        """The highest of the rules for whole subjects that match if this letter is the last byte."""
        nodes = self._nodes
        ours = (node for node in self._resolved(spot, before, letter) if nodes.rule[node] in nodes.whole)
        moved = [nodes.after[node] for node in ours if nodes.moves[node] >> letter & 1]
        reached = nodes.reach_between(moved, letter, _END) & nodes.done
        return max((nodes.rule[node] for node in reached), default=NO_RULE)

    def _winners(self, ends: Iterable[int]) -> _Rules:
        """The highest of the rules that end here, for each letter."""
        best = [NO_RULE] * len(LETTERS)
        for node in ends:
            rule, letter = self._nodes.rule[node], self._nodes.ends[node]
            for at in range(len(LETTERS)) if letter is None else (LETTERS.index(letter),):
                best[at] = max(best[at], rule)
        return tuple(best)

    def _forget(self) -> None:
        """Let go of all states, which only costs time."""
        for state in self.states:
            state.number = -1
        self.states = []
        del self.moves[:], self.rules[:]
        self._known.clear()
        self._spots.clear()
        self._behind.clear()
        self._weight = 0


@lru_cache(maxsize=1024)
def _runs(mask: int) -> tuple[tuple[int, int], ...]:
    """A set of bytes as ranges, each with the first byte and the one behind its last."""
    inside = [*(mask >> byte & 1 for byte in range(256)), 0]
    edges = [byte for byte, here in enumerate(inside) if here != (inside[byte - 1] if byte else 0)]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _highest(rules: dict[int, int], nodes: set[int]) -> int:
    """The highest rule of those nodes that have one."""
    return max(map(rules.__getitem__, nodes & rules.keys()), default=NO_RULE)


def _check_size(rules: Iterable[Rule]) -> None:
    total = 0
    for number, rule in enumerate(rules):
        total += rule.pattern.size
        if total > _SIZE_LIMIT:
            raise LimitExceededError(f"rule {number} of a policy repeats too much", limit=_SIZE_LIMIT)
