"""A filesystem in memory, as columns: OCI layers, their merge, and the text form."""

from composefsd.tree.layer import LayerTable
from composefsd.tree.merge import apply_layer
from composefsd.tree.normative import XattrMode, make_normative
from composefsd.tree.table import Kind, Stat, Tree
from composefsd.tree.tar import LayerStream, parse_layer

__all__ = [
    "Kind",
    "LayerStream",
    "LayerTable",
    "Stat",
    "Tree",
    "XattrMode",
    "apply_layer",
    "make_normative",
    "parse_layer",
]
