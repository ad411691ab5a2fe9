"""The boot image of an OCI image: its tree with /boot and /sysroot emptied, and with labels.

What is done, in which order and what is refused is as in composefs-rs 0.9.4 (`transform_for_boot`): a sealed UKI
names the digest of the outcome.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from composefsd.boot import resources
from composefsd.boot.automaton import LETTERS, State
from composefsd.boot.files import ObjectReader, get_directory
from composefsd.boot.selabel import LETTER_AT, XATTR, Policy
from composefsd.tree.profile import Profile
from composefsd.tree.table import ROOT, Kind, Tree, XattrSet

EMPTIED: Final = (b"boot", b"sysroot")

_UNSEEN: Final = -1
_SLASH: Final = 0x2F
_DIRECTORY: Final = int(Kind.DIRECTORY)  # comparing with the member of an enum takes longer
_DIRECTORY_AT: Final = LETTER_AT[Kind.DIRECTORY]


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
        self._names = tree.names()
        self._given = dict.fromkeys(_repeated(tree.child), _UNSEEN)
        # for each label, the sets of attributes with it by those without
        self._sets: list[dict[int, int]] = [{} for _ in self._labels]
        # entries that are still to come in a directory, the path in front of their names, the state after it
        self._pending: list[tuple[Iterator[int], bytes, State]] = []

    def run(self) -> None:
        root = self._start[_SLASH]
        self._set(ROOT, self._label_of[self._rule(b"/", root, _DIRECTORY_AT)])
        self._go_below(self._tree.entries(ROOT), b"/", root)
        while self._pending:
            if not self._advance(*self._pending[-1]):
                self._pending.pop()

    def _go_below(self, entries: Sequence[int], prefix: bytes, state: State) -> bool:
        """Label what is in a directory at once, if names do not matter in it, else later; whether it is later."""
        if not entries:
            return False
        if self._settled(prefix, state):
            self._label_alike(iter(entries), state)
            return False
        self._pending.append((iter(entries), prefix, state))
        return True

    def _settled(self, prefix: bytes, state: State) -> bool:
        """Whether names do not matter any more."""
        return state.settled and not self._policy.exceptions and not self._policy.replaces_below(prefix)

    def _advance(self, entries: Iterator[int], prefix: bytes, state: State) -> bool:
        """Label entries up to the next directory, and enter that one; False at the end."""
        aliases = self._policy.aliases.get(prefix)
        if aliases is None and not self._policy.exceptions:
            return self._advance_by_name(entries, prefix, state)
        return self._advance_by_path(entries, prefix, state, aliases or {})

    def _advance_by_name(self, entries: Iterator[int], prefix: bytes, state: State) -> bool:
        """Do so where names are all that counts.

        Most of a tree comes this way: its steps stand here, without calls.
        """
        tree, kinds, children, names = self._tree, self._tree.kind, self._tree.child, self._names
        label_of, given, sets, xattrs = self._label_of, self._given, self._sets, self._tree.xattrs
        for entry in entries:
            name, inode = names[entry], children[entry]
            middle = state[name[0]]
            tail = name[1:].lstrip(middle.steady)
            after = middle.tails.get(tail)
            if after is None:
                after = middle.learn(tail)
            kind = kinds[inode]
            label = label_of[after.rules[LETTER_AT[kind]]]
            if inode in given:
                self._label_leaf(entry, inode, label)
            elif (known := sets[label].get(xattrs[inode])) is not None:
                xattrs[inode] = known
            else:
                self._set(inode, label)
            if kind == _DIRECTORY and self._go_below(tree.entries(inode), prefix + name + b"/", after[_SLASH]):
                return True
        return False

    def _advance_by_path(
        self, entries: Iterator[int], prefix: bytes, state: State, aliases: dict[bytes, bytes]
    ) -> bool:
        """Do so where a name may be replaced, or a rule wants to see the whole path."""
        tree, kinds, children = self._tree, self._tree.kind, self._tree.child
        for entry in entries:
            name = self._names[entry]
            path = aliases.get(name, prefix + name)
            after = self._start.after(path) if name in aliases else state.after(name)
            inode = children[entry]
            kind = kinds[inode]
            rule = self._rule(path, after, LETTER_AT[kind])
            if kind == _DIRECTORY:
                self._set(inode, self._label_of[rule])
                if self._enter(tree.entries(inode), path, after):
                    return True
                continue
            self._label_leaf(entry, inode, self._label_of[rule])
        return False

    def _rule(self, path: bytes, state: State, letter_at: int) -> int:
        return self._policy.overridden(path + LETTERS[letter_at : letter_at + 1], state.rules[letter_at])

    def _enter(self, entries: Sequence[int], path: bytes, state: State) -> bool:
        """Go on with what is in a directory; whether there is something to be done first.

        Upstream pushes each name to the path and pops it again.  If a substitution has put a path with superfluous
        slashes or dots at its end, they are gone after the first name.
        """
        first, later = _joined(path), _joined(_without_name(_joined(path)))
        if first != later and len(entries) > 1:
            self._pending.append((iter(entries[1:]), later, self._start.after(later)))
            self._go_below(entries[:1], first, state if first == path else state[_SLASH])
            return True
        return self._go_below(entries, first, state if first == path else state[_SLASH])

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
    inodes = list(inodes)
    if len(set(inodes)) == len(inodes):  # as it mostly is; counting takes longer
        return set()
    return {inode for inode, names in Counter(inodes).items() if names > 1}


def _joined(path: bytes) -> bytes:
    """What stands before a name in a directory."""
    return path if path.endswith(b"/") else path + b"/"


def _without_name(path: bytes) -> bytes:
    """What Rust's `Path::parent` leaves of `path` with a name behind it: no slashes or dots at the end."""
    start = path[:1] if path.startswith((b"/", b"./")) else b""
    while len(path) > len(start) and path.endswith((b"/", b"/.")):
        path = path[:-1]
    return path
