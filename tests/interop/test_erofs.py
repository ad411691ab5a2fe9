"""Images of generated trees against those of composefs-rs and C composefs, byte for byte by their digests.

A failure shows the smallest tree that hypothesis found, as a dump: what `mkcomposefs --from-file` takes.
"""

import re
from collections import Counter
from io import BytesIO
from typing import Final

from hypothesis import assume
from hypothesis import strategies as st
from real import c_tool, trees
from real.c_differences import Rule, rules
from real.generated import for_each
from real.harness import Harness, RefusedError
from real.ledger import Ledger, Sweep
from real.tree_fields import around, numbers, repeated

from composefsd.digests import Algorithm
from composefsd.erofs import FormatVersion, check, compute_id, object_ids, read_tree, write
from composefsd.errors import FormatError
from composefsd.tree import dumpfile
from composefsd.tree.table import REGULAR, ROOT, Kind, Stat, Tree

V0, V1, V2 = FormatVersion
SHA256, SHA512 = Algorithm
COMBINATIONS: Final = ((V0, SHA256), (V1, SHA256), (V2, SHA256), (V1, SHA512), (V2, SHA512))

_LOSSY: Final = frozenset(
    prefix + rest
    for prefix in (b"trusted.overlay.", b"user.overlay.")
    for rest in (b"whiteout", b"whiteouts", b"opaque")
)
"""Attributes of a tree that reading its image drops, since they look like the image's own."""

_STUB_PATH: Final = re.compile(rb"/[0-9a-fA-F]{2}")
"""Where whiteouts are taken for stubs."""


def case(text: bytes, **facts: object) -> str:
    lines = "".join(f"{name}: {fact}\n" for name, fact in facts.items())
    return f"{lines}{text.decode('ascii')}"


def text_of(tree: Tree) -> bytes:
    return b"".join(dumpfile.serialize(tree))


# Writing


def test_images_are_those_of_composefs_rs(harness: Harness, sweep: Sweep, ledger: Ledger) -> None:
    compared: Counter[tuple[FormatVersion, Algorithm]] = Counter()

    def compare(tree: Tree) -> None:
        for algorithm in Algorithm:
            cut = trees.with_algorithm(tree, algorithm)
            text = trees.dump(cut)
            for version in (version for version, other in COMBINATIONS if other is algorithm):
                ours, theirs = compute_id(cut, version).hex, harness.digest(text, version, algorithm)
                assert ours == theirs, case(text, version=version, ours=ours, theirs=theirs)
                compared[version, algorithm] += 1

    for_each(trees.trees(SHA512), sweep, 3000, compare)
    assert all(compared[combination] >= sweep.cases(3000) for combination in COMBINATIONS)
    area = "Image digests of generated trees, V1 and V2 with SHA-256 and SHA-512, V0 with SHA-256"
    ledger.record(area, "composefs-rs", compared.total(), "equal")


def test_images_are_those_of_c_where_no_rule_says_otherwise(
    mkcomposefs: list[str], sweep: Sweep, ledger: Ledger
) -> None:
    ruled: Counter[Rule] = Counter()
    equal = differing = 0

    def compare(tree: Tree) -> None:
        nonlocal equal, differing
        text, found = trees.dump(tree), rules(tree)
        if found:
            ruled.update(found)
            differing += 1
            assume(False)  # noqa: FBT003 - it does not count, so that enough are compared
        ours, theirs = compute_id(tree, V1).hex, c_tool.digest(mkcomposefs, text, V1)
        assert ours == theirs, case(text, ours=ours, theirs=theirs)
        equal += 1

    for_each(trees.trees(SHA256), sweep, 1500, compare)
    assert equal >= sweep.cases(1500)
    listed = ", ".join(f"{number} {rule.value}" for rule, number in ruled.most_common())
    result = f"equal; {differing:,} more left out, for {listed}"
    ledger.record("Image digests of generated trees, V1, SHA-256", "C composefs", equal, result)


@st.composite
def large_contents(draw: st.DrawFn) -> Tree:
    """Content and targets that only C reads from a dump, next to boundaries of blocks."""
    sizes = numbers([*around(2048, 2049, 4096), 513, 3000, 4097 + 2047, 4096 + 2048, 4096 + 2049, 5000], 5000)
    targets = numbers([1025, 3000, *around(3900, 4000, 4030, 4060, 4080), 4094, 4095], 4095)
    tree = Tree(SHA256)
    tree.set_stat(ROOT, Stat(0o755, 0, 0, 5, 0))
    for name in [b"a", b"b", b"c", b"d"][: draw(st.integers(1, 4))]:
        value = draw(repeated(numbers([0, 1, 31, 32, 900], 2000)))
        stat = Stat(0o644, 0, 0, draw(st.integers(5, 6)), 0, ((b"user.a", value),) if value else ())
        if draw(st.booleans()):
            inode = tree.add_inline(stat, draw(repeated(sizes)))
        else:
            inode = tree.add_symlink(stat, draw(repeated(targets)) or b"x")
        tree.insert(ROOT, name, inode)
    tree.freeze()
    return tree


def test_large_contents_are_laid_out_as_by_c(mkcomposefs: list[str], sweep: Sweep, ledger: Ledger) -> None:
    compared = 0

    def compare(tree: Tree) -> None:
        nonlocal compared
        text = trees.dump(tree)
        ours, theirs = compute_id(tree, V1).hex, c_tool.digest(mkcomposefs, text, V1)
        assert ours == theirs, case(text, ours=ours, theirs=theirs)
        compared += 1

    for_each(large_contents(), sweep, 400, compare)
    area = "Image digests with inline content of 513 to 5000 bytes, targets of 1025 to 4095"
    ledger.record(area, "C composefs", compared, "equal")


def test_files_with_as_many_names_as_a_compact_inode_counts(
    harness: Harness, mkcomposefs: list[str], ledger: Ledger
) -> None:
    """And directories of many blocks: 65,535 and 65,536 names."""
    for links in (0xFFFF, 0x10000):
        tree = Tree(SHA256)
        tree.set_stat(ROOT, Stat(0o755, 0, 0, 5, 0))
        directory = tree.add_directory(Stat(0o755, 0, 0, 5, 0))
        tree.insert(ROOT, b"d", directory)
        file = tree.add_inline(Stat(0o644, 0, 0, 5, 0), b"x")
        for number in range(links):
            tree.insert(directory, b"%x" % number, file)
        tree.freeze()
        text = trees.dump(tree)
        for version in (V1, V2):
            assert compute_id(tree, version).hex == harness.digest(text, version, SHA256)
        assert compute_id(tree, V1).hex == c_tool.digest(mkcomposefs, text, V1)
    ledger.record("Image digests of a file with 65,535 and 65,536 names", "both", 2, "equal")


# Reading back


def is_lossless(tree: Tree, version: FormatVersion) -> bool:
    """Whether an image says all that a tree is."""
    inodes = {ROOT, *(inode for _, _, inode in tree.walk())}
    names = {name for inode in inodes for name, _ in tree.stat(inode).xattrs}
    if not names.isdisjoint(_LOSSY) or (version is V2 and any(tree.nsec[inode] for inode in inodes)):
        return False
    return not any(
        tree.kind[inode] == Kind.CHAR and not tree.size[inode] and _STUB_PATH.fullmatch(path)
        for path, _, inode in tree.walk()
    )


def read_both(harness: Harness, image: bytes, algorithm: Algorithm) -> tuple[bytes | None, bytes | None]:
    """The dumps that we and composefs-rs make of an image, or None for what is refused."""
    ours: bytes | None
    theirs: bytes | None
    try:
        check(image, algorithm)
        ours = text_of(read_tree(image, algorithm))
    except FormatError:
        ours = None
    try:
        harness.check(image, algorithm)
        theirs = harness.tree(image, algorithm)
    except RefusedError:
        theirs = None
    return ours, theirs


def looks_escaped(tree: Tree) -> bool:
    """Whether a file of the tree has the attribute of an escaped whiteout, which readers then take it for."""
    return any(
        name == b"trusted.overlay.whiteout" and tree.kind[inode] in REGULAR
        for _, _, inode in tree.walk()
        for name, _ in tree.stat(inode).xattrs
    )


def test_images_are_read_as_composefs_rs_reads_them(harness: Harness, sweep: Sweep, ledger: Ledger) -> None:
    """Its dump of an image is ours of what we read, and of the tree itself unless the image has lost something."""
    lossless = lossy = refused = 0

    def compare(tree: Tree) -> None:
        nonlocal lossless, lossy, refused
        text = trees.dump(tree)
        for version in (V1, V2):
            image = b"".join(write(tree, version))
            ours, theirs = read_both(harness, image, tree.algorithm)
            assert ours == theirs, case(text, version=version, ours=ours, theirs=theirs)
            if ours is None:
                assert looks_escaped(tree), case(text, version=version)
                refused += 1
                continue
            assert object_ids(image, tree.algorithm) == harness.objects(image, tree.algorithm), case(text)
            if is_lossless(tree, version):
                assert ours == text_of(tree), case(text, version=version, ours=ours)
                lossless += 1
            else:
                lossy += 1

    for_each(trees.trees(SHA512) | trees.trees(SHA256), sweep, 500, compare)
    assert lossless > sweep.cases(100)
    result = (
        f"the same dump and objects, of {lossless:,} without loss the dump of the tree itself; {refused} refused by "
        "both, since a file has an attribute of whiteouts"
    )
    ledger.record("Images of generated trees, read back", "composefs-rs", lossless + lossy + refused, result)


# Dumps in another order


def test_dumps_in_any_order_make_the_images_of_composefs_rs(harness: Harness, sweep: Sweep, ledger: Ledger) -> None:
    compared = 0

    def compare(drawn: tuple[Tree, int]) -> None:
        nonlocal compared
        tree, order = drawn
        text = trees.dump(tree, order)
        ours = compute_id(dumpfile.parse(BytesIO(text), tree.algorithm), V1).hex
        theirs = harness.digest(text, V1, tree.algorithm)
        assert ours == theirs == compute_id(tree, V1).hex, case(text, ours=ours, theirs=theirs)
        compared += 1

    for_each(st.tuples(trees.trees(SHA512), st.integers(1, 1 << 32)), sweep, 400, compare)
    ledger.record("Dumps of generated trees, siblings and links in any order, V1", "composefs-rs", compared, "equal")
