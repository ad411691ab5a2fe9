"""From tars to the normative tree: what cfsctl made of the same layers."""

import gzip
from pathlib import Path

import pytest

from composefsd.digests import Algorithm
from composefsd.errors import FormatError
from composefsd.tree import LayerTable, Tree, XattrMode, apply_layer, dumpfile, make_normative, parse_layer
from composefsd.verity import compute_digest

VECTORS = Path(__file__).parents[2] / "vectors" / "layers"


class Source:
    """A layer in memory that computes the digests of its external files."""

    def __init__(self, data: bytes) -> None:
        self.left = memoryview(data)
        self.digests = b""

    def inline(self, count: int) -> bytes:
        taken, self.left = self.left[:count], self.left[count:]
        return bytes(taken)

    def external(self, size: int) -> None:
        if size > len(self.left):
            raise FormatError("the input ends in an external file")
        self.digests += compute_digest(self.left[:size], Algorithm.SHA512)
        self.left = self.left[size:]

    def rest(self) -> None:
        self.left = self.left[len(self.left) :]


@pytest.mark.parametrize("number", range(6))
def test_layers_become_the_tree_that_cfsctl_dumps(number: int) -> None:
    tree = Tree(Algorithm.SHA512)
    for path in sorted(VECTORS.glob(f"{number}-*.tar.gz")):
        source = Source(gzip.decompress(path.read_bytes()))
        table = parse_layer(source)
        apply_layer(tree, LayerTable.parse(table.serialize()), source.digests)
    tree.freeze()
    make_normative(tree, XattrMode.ALLOWLIST_ONLY)
    assert b"".join(dumpfile.serialize(tree)) == (VECTORS / f"{number}.dump").read_bytes()
