"""Everything an image says about how it boots, and the boot image."""

from composefsd.boot.bls import Entry, EntryName
from composefsd.boot.cmdline import ComposefsArgument
from composefsd.boot.files import ObjectReader, RangeReader
from composefsd.boot.os_release import OsRelease
from composefsd.boot.resources import BootResource, ResourceType
from composefsd.boot.selabel import Policy
from composefsd.boot.transform import make_boot
from composefsd.boot.uki import Uki

__all__ = [
    "BootResource",
    "ComposefsArgument",
    "Entry",
    "EntryName",
    "ObjectReader",
    "OsRelease",
    "Policy",
    "RangeReader",
    "ResourceType",
    "Uki",
    "make_boot",
]
