"""The boot image of an OCI image: its tree with /boot and /sysroot emptied, and with labels.

What is done, in which order and what is refused is as in composefs-rs 0.9.4 (`transform_for_boot`): a sealed UKI
names the digest of the outcome.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from composefsd.boot import resources
from composefsd.boot.automaton import LETTERS, NO_RULE, State
from composefsd.boot.files import ObjectReader, get_directory
from composefsd.boot.selabel import LETTER_AT, XATTR, Policy
from composefsd.tree.table import ROOT, Kind, Tree, XattrSet

EMPTIED: Final = (b"boot", b"sysroot")

_UNSEEN: Final = -1
_SLASH: Final = 0x2F
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
        # by rule; NO_RULE is -1, the last
        self._label_of = [*(places[context] for context in policy.contexts), places[None]]
        self._given = array("i", [_UNSEEN]) * len(tree.kind)
        self._sets: list[dict[int, int]] = [{} for _ in self._labels]
        # entries that are still to come in a directory, the path in front of their names, the state after it
        self._pending: list[tuple[Iterator[int], bytes, State]] = []

    def run(self) -> None:
        root = self._start[_SLASH]
        self._set(ROOT, self._label(b"/", root, _DIRECTORY_AT))
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
        return state.settled and prefix not in self._policy.alias_parents and not self._policy.exceptions

    def _advance(self, entries: Iterator[int], prefix: bytes, state: State) -> bool:
        """Label entries up to the next directory, and enter that one; False at the end."""
        tree, kinds, children = self._tree, self._tree.kind, self._tree.child
        aliases = self._policy.aliases.get(prefix, {})
        for entry in entries:
            name = tree.name(entry)
            path, after = prefix + name, state
            if name in aliases:
                path = aliases[name]
                after = self._start.after(path)
            else:
                for byte in name:
                    after = after[byte]
            inode = children[entry]
            label = self._label(path, after, LETTER_AT[kinds[inode]])
            if kinds[inode] == Kind.DIRECTORY:
                self._set(inode, label)
                self._enter(tree.entries(inode), path, after)
                return True
            self._label_leaf(entry, inode, label)
        return False

    def _label(self, path: bytes, state: State, letter_at: int) -> int:
        rule = state.rules[letter_at]
        if self._policy.exceptions:
            rule = self._policy.overridden(path + LETTERS[letter_at : letter_at + 1], rule)
        return self._label_of[rule]

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
                if kind == Kind.DIRECTORY:
                    self._set(inode, labels[kind])
                    pending.append(iter(tree.entries(inode)))
                    break
                self._label_leaf(entry, inode, labels[kind])
            else:
                pending.pop()

    def _label_leaf(self, entry: int, inode: int, label: int) -> None:
        given = self._given[inode]
        if given == label:
            return
        if given == _UNSEEN:
            self._given[inode] = label
        else:
            inode = self._tree.split(entry)
        self._set(inode, label)

    def _set(self, inode: int, label: int) -> None:
        old = self._tree.xattrs[inode]
        new = self._sets[label].get(old)
        if new is None:
            xattrs = _with_label(self._tree.xattr_sets[old], self._labels[label])
            new = self._sets[label][old] = self._tree.intern(xattrs)
        self._tree.xattrs[inode] = new


def _joined(path: bytes) -> bytes:
    """What stands before a name in a directory."""
    return path if path.endswith(b"/") else path + b"/"


def _without_name(path: bytes) -> bytes:
    """What Rust's `Path::parent` leaves of `path` with a name behind it: no slashes or dots at the end."""
    start = path[:1] if path.startswith((b"/", b"./")) else b""
    while len(path) > len(start) and path.endswith((b"/", b"/.")):
        path = path[:-1]
    return path


assert NO_RULE == -1, "labels are looked up by rule, and the last is for none"
