"""EROFS images: a tree as bytes, and back."""

from composefsd.erofs.format import FormatVersion
from composefsd.erofs.reader import check, object_ids, read_tree
from composefsd.erofs.writer import compute_id, write

__all__ = ["FormatVersion", "check", "compute_id", "object_ids", "read_tree", "write"]
