"""The boot image of an OCI image: its tree with /boot and /sysroot emptied, and with labels.

What is done, in which order and what is refused is as in composefs-rs 0.9.4 (`transform_for_boot`): a sealed UKI
names the digest of the outcome.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from composefsd.boot import resources
from composefsd.boot.automaton import LETTERS, State
from composefsd.boot.files import ObjectReader, get_directory
from composefsd.boot.selabel import LETTER_AT, XATTR, Policy
from composefsd.tree.table import ROOT, Kind, Tree, XattrSet

EMPTIED: Final = (b"boot", b"sysroot")

_UNSEEN: Final = -1
_NO_ALIASES: Final[dict[bytes, bytes]] = {}
_SLASH: Final = 0x2F
_DIRECTORY: Final = int(Kind.DIRECTORY)  # comparing with the member of an enum takes longer
_DIRECTORY_AT: Final = LETTER_AT[Kind.DIRECTORY]


def make_boot(tree: Tree, read: ObjectReader, *, check_resources: bool = True) -> Tree:
    """The tree of the boot image, from the frozen tree of the normative one, which stays as it is.

    check_resources is False for a tree that was read from a directory: upstream looks at boot resources only where
    the files are in a repository.  Raises NotBootableError, with one reason a line, for an image that upstream
    refuses (no /boot, a boot entry that names no file, half a policy), and FormatError, LimitExceededError or
    UnsupportedError for a policy that cannot be used.
    """
    if check_resources:
        resources.check(tree, read)
    boot = tree.fork()
    _empty(boot)
    policy = Policy.load(boot, read)
    if policy is None:
        _strip(boot)
    else:
        _Labeller(boot, policy).run()
    return boot


def _empty(tree: Tree) -> None:
    usr = get_directory(tree, b"usr")
    for name in EMPTIED:
        directory = get_directory(tree, name)
        tree.clear(directory)
        tree.mtime[directory], tree.nsec[directory] = tree.mtime[usr], tree.nsec[usr]


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
    """

    def __init__(self, tree: Tree, policy: Policy) -> None:
        self._tree = tree
        self._policy = policy
        self._start = policy.automaton.start
        labels = dict.fromkeys([*policy.contexts, None])
        self._labels = list(labels)
        places = {label: place for place, label in enumerate(labels)}
        # by rule; NO_RULE is -1, which makes it the last
        self._label_of = [*(places[context] for context in policy.contexts), places[None]]
        self._given = dict.fromkeys(_repeated(tree.child), _UNSEEN)
        # for each label, the sets of attributes with it by those without
        self._sets: list[dict[int, int]] = [{} for _ in self._labels]
        # entries that are still to come in a directory, the path in front of their names, the state after it
        self._pending: list[tuple[Iterator[int], bytes, State]] = []

    def run(self) -> None:
        root = self._start[_SLASH]
        self._set(ROOT, self._label_of[self._rule(b"/", root, _DIRECTORY_AT)])
        self._pending.append((iter(self._tree.entries(ROOT)), b"/", root))
        while self._pending:
            entries, prefix, state = self._pending[-1]
            if self._settled(prefix, state):
                self._pending.pop()
                self._label_alike(entries, state)
            elif not self._advance(entries, prefix, state):
                self._pending.pop()

    def _settled(self, prefix: bytes, state: State) -> bool:
        """Whether names do not matter any more."""
        return state.settled and not self._policy.exceptions and not self._policy.replaces_below(prefix)

    def _advance(self, entries: Iterator[int], prefix: bytes, state: State) -> bool:
        """Label entries up to the next directory, and enter that one; False at the end."""
        tree, kinds, children = self._tree, self._tree.kind, self._tree.child
        aliases = self._policy.aliases.get(prefix, _NO_ALIASES)
        exceptions, label_of = self._policy.exceptions, self._label_of
        for entry in entries:
            name, after = tree.name(entry), state
            if name in aliases:
                after = self._start.after(aliases[name])
            else:
                for byte in name:
                    after = after[byte]
            inode = children[entry]
            kind = kinds[inode]
            rule = after.rules[LETTER_AT[kind]]
            if exceptions:
                rule = self._rule(aliases.get(name, prefix + name), after, LETTER_AT[kind])
            if kind == _DIRECTORY:
                self._set(inode, label_of[rule])
                self._enter(tree.entries(inode), aliases.get(name, prefix + name), after)
                return True
            self._label_leaf(entry, inode, label_of[rule])
        return False

    def _rule(self, path: bytes, state: State, letter_at: int) -> int:
        return self._policy.overridden(path + LETTERS[letter_at : letter_at + 1], state.rules[letter_at])

    def _enter(self, entries: Sequence[int], path: bytes, state: State) -> None:
        """Go on with what is in a directory.

        Upstream pushes each name to the path and pops it again.  If a substitution has put a path with superfluous
        slashes or dots at its end, they are gone after the first name.
        """
        first, later = _joined(path), _joined(_without_name(_joined(path)))
        if first != later and len(entries) > 1:
            self._pending.append((iter(entries[1:]), later, self._start.after(later)))
            entries = entries[:1]
        self._pending.append((iter(entries), first, state if first == path else state[_SLASH]))

    def _label_alike(self, entries: Iterator[int], state: State) -> None:
        """Label all that is left of a directory, and all below it: by type alone."""
        tree, kinds, children = self._tree, self._tree.kind, self._tree.child
        labels = [self._label_of[state.beyond[letter_at]] for letter_at in LETTER_AT]
        pending = [entries]
        while pending:
            for entry in pending[-1]:
                inode = children[entry]
                kind = kinds[inode]
                if kind == _DIRECTORY:
                    self._set(inode, labels[kind])
                    pending.append(iter(tree.entries(inode)))
                    break
                self._label_leaf(entry, inode, labels[kind])
            else:
                pending.pop()

    def _label_leaf(self, entry: int, inode: int, label: int) -> None:
        if inode in self._given:
            given = self._given[inode]
            if given == _UNSEEN:
                self._given[inode] = label
            elif given != label:
                inode = self._tree.split(entry)
        self._set(inode, label)

    def _set(self, inode: int, label: int) -> None:
        old = self._tree.xattrs[inode]
        new = self._sets[label].get(old)
        if new is None:
            new = self._tree.intern(_with_label(self._tree.xattr_sets[old], self._labels[label]))
            self._sets[label][old] = new
        self._tree.xattrs[inode] = new


def _repeated(inodes: Iterable[int]) -> set[int]:
    """Those with more than one name."""
    seen, repeated = set[int](), set[int]()
    for inode in inodes:
        if inode in seen:
            repeated.add(inode)
        seen.add(inode)
    return repeated


def _joined(path: bytes) -> bytes:
    """What stands before a name in a directory."""
    return path if path.endswith(b"/") else path + b"/"


def _without_name(path: bytes) -> bytes:
    """What Rust's `Path::parent` leaves of `path` with a name behind it: no slashes or dots at the end."""
    start = path[:1] if path.startswith((b"/", b"./")) else b""
    while len(path) > len(start) and path.endswith((b"/", b"/.")):
        path = path[:-1]
    return path
