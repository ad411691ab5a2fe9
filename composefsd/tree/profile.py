"""What composefs-rs has done to trees, version by version, as far as digests tell it.

A sealed UKI keeps the digest that the composefs-rs of its builder computed.  Two rules have changed since images of
format V1 are made of OCI layers, which began with 0.7.0; each was read from the source of the versions named here:

* Up to 0.9.2 an emptied /boot and /sysroot took only the seconds of /usr's mtime, and kept their own nanoseconds
  (`empty_toplevel_dirs` of its boot crate).
* 0.7.0 did not filter extended attributes of layers: `transform_for_oci` began to with 0.8.0.  SELinux labels were
  made anew for boot images by 0.7.0 just the same.

Up to 0.6.0 there was only V2, of trees without nanoseconds.  What those versions made of hard links with different
labels is not known here, so they have no profile of their own.
"""

from enum import StrEnum


class Profile(StrEnum):
    """The rules by which a boot image is made; the values are names of the API and of references."""

    CURRENT = "current"
    UP_TO_0_9_2 = "0.9.2"
    V0_7_0 = "0.7.0"

    @property
    def keeps_nanoseconds(self) -> bool:
        """Whether /boot and /sysroot keep the nanoseconds of their mtimes when they are emptied."""
        return self is not Profile.CURRENT

    @property
    def keeps_xattrs(self) -> bool:
        """Whether all extended attributes of the layers stay, whatever mode is asked for."""
        return self is Profile.V0_7_0

    @property
    def words(self) -> str:
        """Whose rules these are, for people."""
        return {
            Profile.CURRENT: "composefs-rs since 0.9.3",
            Profile.UP_TO_0_9_2: "composefs-rs up to 0.9.2",
            Profile.V0_7_0: "composefs-rs 0.7.0",
        }[self]
