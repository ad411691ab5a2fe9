"""From a merged tree to the normative one, which OCI layers and a scan of the unpacked image must agree on.

Defined by composefs-rs (its `transform_for_oci`): what differs between the two, or leaks in from the host that built
the image, is replaced by something that both know.
"""

from array import array
from enum import StrEnum
from typing import Final

from composefsd.errors import FormatError
from composefsd.tree.profile import Profile
from composefsd.tree.table import ROOT, Kind, Tree, XattrSet

_CAPABILITY: Final = b"security.capability"


class XattrMode(StrEnum):
    """Which extended attributes an image keeps; the values are the names on composefs-rs's command line."""

    ALLOWLIST_ONLY = "allowlist-only"  # file capabilities
    KEEP_USER = "keep-user-xattrs"  # these, and all names that start with `user.`


def make_normative(tree: Tree, mode: XattrMode, profile: Profile = Profile.CURRENT) -> None:
    """Give the root of a frozen tree the metadata of /usr, empty /run, and drop extended attributes.

    The profile is that of the boot image which is to be made of it.  Raises FormatError if /usr is missing, or /usr
    or /run is no directory.
    """
    usr = _find_directory(tree, b"usr")
    if usr is None:
        raise FormatError("the image has no directory /usr", subject="/usr")
    tree.copy_stat(usr, ROOT)
    run = _find_directory(tree, b"run")
    if run is not None:
        tree.clear(run)
        tree.mtime[run], tree.nsec[run] = tree.mtime[usr], tree.nsec[usr]
    if profile.keeps_xattrs:
        return
    kept = array("I", (tree.intern(_filter(xattrs, mode)) for xattrs in tuple(tree.xattr_sets)))
    tree.xattrs[:] = array("I", map(kept.__getitem__, tree.xattrs))


def kept_names(tree: Tree, mode: XattrMode, profile: Profile = Profile.CURRENT) -> frozenset[bytes]:
    """The names of the extended attributes of a tree that `make_normative` would keep."""
    names = frozenset(name for xattrs in tree.xattr_sets for name, _ in xattrs)
    return names if profile.keeps_xattrs else frozenset(name for name in names if _is_kept(name, mode))


def _find_directory(tree: Tree, name: bytes) -> int | None:
    entry = tree.find_entry(ROOT, name)
    if entry is None:
        return None
    inode = tree.child[entry]
    if tree.kind[inode] != Kind.DIRECTORY:
        path = f"/{name.decode()}"
        raise FormatError(f"{path} of the image is not a directory", subject=path)
    return inode


def _filter(xattrs: XattrSet, mode: XattrMode) -> XattrSet:
    return tuple(pair for pair in xattrs if _is_kept(pair[0], mode))


def _is_kept(name: bytes, mode: XattrMode) -> bool:
    return name == _CAPABILITY or (mode is XattrMode.KEEP_USER and name.startswith(b"user."))
