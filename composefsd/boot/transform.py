"""The boot image of an OCI image: its tree with /boot and /sysroot emptied, and with labels.

What is done, in which order and what is refused is as in composefs-rs 0.9.4 (`transform_for_boot`): a sealed UKI
names the digest of the outcome.
"""

from array import array
from collections.abc import Iterator
from functools import cache
from typing import Final

from composefsd.boot import resources
from composefsd.boot.automaton import LETTERS, State
from composefsd.boot.files import ObjectReader, get_directory
from composefsd.boot.selabel import LETTER_AT, XATTR, Policy
from composefsd.compiled import FRAME, Stop, descend
from composefsd.tree.profile import Profile
from composefsd.tree.table import ROOT, Kind, Tree, XattrSet

EMPTIED: Final = (b"boot", b"sysroot")

_UNSEEN: Final = -1
_DIRECTORY: Final = int(Kind.DIRECTORY)  # comparing with the member of an enum takes longer
_DIRECTORY_AT: Final = LETTER_AT[Kind.DIRECTORY]
_LETTERS_AT: Final = bytes(LETTER_AT)
_USUAL_DEPTH: Final = 32


def make_boot(
    tree: Tree, read: ObjectReader, *, check_resources: bool = True, profile: Profile = Profile.CURRENT
) -> Tree:
    """The tree of the boot image, from the frozen tree of the normative one, which stays as it is.

    check_resources is False for a tree that was read from a directory: upstream looks at boot resources only where
    the files are in a repository.  Raises NotBootableError, with one reason a line, for an image that upstream
    refuses (no /boot, a boot entry that names no file, half a policy), and FormatError, LimitExceededError or
    UnsupportedError for a policy that cannot be used.
    """
    if check_resources:
        resources.check(tree, read)
    boot = tree.fork()
    _empty(boot, profile)
    policy = Policy.load(boot, read)
    if policy is None:
        _strip(boot)
    else:
        label(boot, policy)
    return boot


def label(tree: Tree, policy: Policy) -> None:
    """Give each inode of a frozen tree its label; hard links that a policy tells apart become files of their own."""
    _Labeller(tree, policy).run()


def _empty(tree: Tree, profile: Profile) -> None:
    usr = get_directory(tree, b"usr")
    for name in EMPTIED:
        directory = get_directory(tree, name)
        tree.clear(directory)
        tree.mtime[directory] = tree.mtime[usr]
        if not profile.keeps_nanoseconds:
            tree.nsec[directory] = tree.nsec[usr]


def _with_label(xattrs: XattrSet, label: bytes | None) -> XattrSet:
    others = [pair for pair in xattrs if pair[0] != XATTR]
    return tuple(sorted(others if label is None else [*others, (XATTR, label)]))


def _strip(tree: Tree) -> None:
    """Remove every label."""
    labelled = {
        old: tree.intern(_with_label(xattrs, None))
        for old, xattrs in enumerate(tree.xattr_sets[:])
        if any(name == XATTR for name, _ in xattrs)
    }
    if labelled:
        tree.xattrs = array("I", (labelled.get(old, old) for old in tree.xattrs))


class _Labeller:
    """Gives each inode its label.

    The walk is depth first in the order of names, and the first name of an inode decides: any later name that would
    have another label gets a copy of the inode.  Labels are numbers here: places in `labels`.

    Where no name is replaced, and no rule wants to see the whole path, what is below a directory is left to a
    compiled walk.
    """

    def __init__(self, tree: Tree, policy: Policy) -> None:
        self._tree = tree
        self._policy = policy
        self._automaton = policy.automaton
        labels = dict.fromkeys([*policy.contexts, None])
        self._labels = list(labels)
        places = {label: place for place, label in enumerate(labels)}
        # by rule; NO_RULE is -1, which makes it the last
        self._label_of = array("i", (*(places[context] for context in policy.contexts), places[None]))
        self._given = array("i", (_UNSEEN,)) * len(tree.kind)  # by inode
        self._listings = tree.listings()
        # places of entries still to come, the path in front of their names, the state after it
        self._pending: list[tuple[Iterator[int], bytes, State]] = []
        self._stack = array("I", bytes(4 * FRAME * _USUAL_DEPTH))

    def run(self) -> None:
        root = self._automaton.after(self._automaton.start, b"/")
        self._given[ROOT] = self._label_of[self._rule(b"/", root, _DIRECTORY_AT)]
        self._go_below(self._places(ROOT), b"/", root)
        while self._pending:
            if not self._advance(*self._pending[-1]):
                self._pending.pop()
        self._apply()

    def _places(self, directory: int) -> range:
        """The places of a directory's entries in the order of all."""
        listing, first = self._tree.listing[directory], self._listings.first
        return range(first[listing], first[listing + 1])

    def _go_below(self, places: range, prefix: bytes, state: State) -> None:
        """Label what is in a directory and below, at once if names are all that counts, else later."""
        if places and (self._policy.exceptions or self._policy.replaces_below(prefix)):
            self._pending.append((iter(places), prefix, state))
        elif places:
            self._descend(places, state)

    def _advance(self, places: Iterator[int], prefix: bytes, state: State) -> bool:
        """Label entries up to the next directory, and enter that one; False at the end."""
        tree, order = self._tree, self._listings.order
        aliases = self._policy.aliases.get(prefix, {})
        for place in places:
            entry = order[place]
            name, inode = tree.name(entry), tree.child[entry]
            path = aliases.get(name, prefix + name)
            start, text = (self._automaton.start, path) if name in aliases else (state, name)
            after = self._automaton.after(start, text)
            label = self._label_of[self._rule(path, after, LETTER_AT[tree.kind[inode]])]
            if tree.kind[inode] == _DIRECTORY:
                self._given[inode] = label
                self._enter(self._places(inode), path, after)
                return True
            if self._given[inode] == _UNSEEN:
                self._given[inode] = label
            elif self._given[inode] != label:
                self._split(entry, label)
        return False

    def _rule(self, path: bytes, state: State, letter_at: int) -> int:
        return self._policy.overridden(path + LETTERS[letter_at : letter_at + 1], state.rules[letter_at])

    def _enter(self, places: range, path: bytes, after: State) -> None:
        """Go on with what is in a directory; `after` is the state behind its path.

        Upstream pushes each name to the path and pops it again.  If a substitution has put a path with superfluous
        slashes or dots at its end, they are gone after the first name.
        """
        first, later = _joined(path), _joined(_without_name(_joined(path)))
        state = after if first == path else self._automaton.after(after, b"/")
        if first != later and len(places) > 1:
            self._pending.append((iter(places[1:]), later, self._automaton.after(self._automaton.start, later)))
            places = places[:1]
        self._go_below(places, first, state)

    def _descend(self, places: range, state: State) -> None:
        """Label what is in a directory and below, where names are all that counts."""
        tree, names, stack, automaton = self._tree, self._listings, self._stack, self._automaton
        columns = (
            names.first, names.order, names.names, names.name_end, tree.child, tree.kind, tree.listing,
            automaton.moves, automaton.rules, self._label_of, _LETTERS_AT, self._given,
        )  # fmt: skip
        number = automaton.number(state)
        stack[:FRAME] = array("I", (places.start, places.stop, number, 0, number))
        why, depth, subject, detail = descend(1, stack, *columns)
        while why != Stop.DONE:
            match why:
                case Stop.UNKNOWN:
                    self._step(depth, subject, detail)
                case Stop.CONFLICT:
                    self._split(subject, detail)
                case _:
                    stack.extend(stack)
            why, depth, subject, detail = descend(depth, stack, *columns)

    def _step(self, depth: int, number: int, byte: int) -> None:
        """Let the automaton learn a move; if that makes it forget states, those of the stack get new numbers."""
        states = self._automaton.states
        self._automaton.step(states[number], byte)
        if self._automaton.states is not states:
            for at in range(0, FRAME * depth, FRAME):
                for place in at + 2, at + 4:
                    self._stack[place] = self._automaton.number(states[self._stack[place]])

    def _split(self, entry: int, label: int) -> None:
        """Give an entry an inode of its own, with this label."""
        self._tree.split(entry)
        self._given.append(label)

    def _apply(self) -> None:
        """Put the labels into the attributes; what the walk has not reached keeps its own."""
        self._tree.xattrs = array("I", map(cache(self._labelled), self._given, self._tree.xattrs))

    def _labelled(self, label: int, old: int) -> int:
        """The set of attributes that is as an old one, but with this label."""
        if label == _UNSEEN:
            return old
        return self._tree.intern(_with_label(self._tree.xattr_sets[old], self._labels[label]))


def _joined(path: bytes) -> bytes:
    """What stands before a name in a directory."""
    return path if path.endswith(b"/") else path + b"/"


def _without_name(path: bytes) -> bytes:
    """What Rust's `Path::parent` leaves of `path` with a name behind it: no slashes or dots at the end."""
    start = path[:1] if path.startswith((b"/", b"./")) else b""
    while len(path) > len(start) and path.endswith((b"/", b"/.")):
        path = path[:-1]
    return path
