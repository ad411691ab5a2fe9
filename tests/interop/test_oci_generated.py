"""Random layers and random systems: the same verdict, trees and digests as composefs-rs's."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice, product
from pathlib import Path
from typing import Final

import pytest
from interop.oci_ours import Trees, dump_layer, parse_tar
from interop.oci_seen import FORMATS, KINDS, Seen, Wanted, difference
from interop.oci_theirs import Theirs
from interop.random_layers import RandomLayers
from interop.random_systems import RandomSystems, base_layer
from real.corpus.case import Verdict
from real.ledger import Ledger, Sweep
from real.oci_layout import Compression, Image, Layer, Layout

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.errors import ComposefsdError
from composefsd.oci.storage import ImageKind
from composefsd.tree.merge import apply_layer
from composefsd.tree.normative import XattrMode
from composefsd.tree.table import Tree

_LAYOUTS: Final = 300
_SYSTEMS: Final = 200

Way = tuple[Algorithm, FormatVersion]


def _wanted(version: FormatVersion) -> tuple[Wanted, ...]:
    return tuple(Wanted(kind, mode, version) for kind, mode in product(KINDS, XattrMode))


class Peer:
    """Repositories of cfsctl, and a layout of images to pull into them."""

    def __init__(self, folder: Path, cfsctl: Path) -> None:
        self._sides = {algorithm: Theirs(cfsctl, folder, algorithm) for algorithm in Algorithm}
        self._layout = Layout(folder / "layout")

    def look(self, images: Sequence[Sequence[bytes]]) -> Iterator[tuple[Way, Seen]]:
        """Everything that cfsctl says about each image; each is pulled in another way than the one before."""
        added = [self._layout.add_image(None, [Layer(tar, Compression.NONE) for tar in tars]) for tars in images]
        for image in added:
            self._layout.set_tag(image.manifest.digest.removeprefix("sha256:"), image.manifest)
        ways = list(islice(cycle(product(Algorithm, FORMATS)), len(images)))
        with ThreadPoolExecutor(4) as pool:
            yield from zip(ways, pool.map(self._look, added, ways), strict=True)

    def _look(self, image: Image, way: Way) -> Seen:
        (algorithm, version), tag = way, image.manifest.digest.removeprefix("sha256:")
        reference = f"oci:{self._layout.path}:{tag}"
        return _their_view(self._sides[algorithm], version, reference, [layer.diff_id for layer in image.layers])


def _their_view(side: Theirs, version: FormatVersion, reference: str, layers: Sequence[str]) -> Seen:
    tag = reference.rpartition(":")[2]
    verdict, done = side.pull_into(version, reference, tag)
    seen = Seen(verdict, done.message)
    if verdict in (Verdict.IMAGES, Verdict.NORMATIVE):
        for wanted in _wanted(version):
            if digest := side.compute_id(tag, wanted):
                seen.computed[str(wanted)] = digest
                seen.dumps[str(wanted)] = side.dump(tag, wanted) or b""
        seen.layers = {diff_id: side.dump_layer(version, diff_id) for diff_id in layers}
    return seen


def _our_view(way: Way, tars: Sequence[bytes]) -> Seen:
    algorithm, version = way
    contents: dict[bytes, bytes] = {}
    try:
        layers = [parse_tar(one, algorithm, contents) for one in tars]
        trees = Trees(layers, algorithm, lambda digest, _limit: contents[digest])
        trees.digest(Wanted(ImageKind.NORMATIVE, XattrMode.ALLOWLIST_ONLY, version))
    except ComposefsdError as error:
        return Seen(Verdict.REFUSED, error.message)
    seen = Seen(Verdict.IMAGES)
    for wanted in _wanted(version):
        try:
            seen.dumps[str(wanted)] = trees.dump(wanted)
            seen.computed[str(wanted)] = trees.digest(wanted)
        except ComposefsdError as error:
            seen.verdict, seen.message = Verdict.NORMATIVE, error.message
    seen.layers = {str(number): dump_layer(*layer, algorithm) for number, layer in enumerate(layers)}
    return seen


def _check(number: int, ours: Seen, theirs: Seen) -> None:
    told = f"case {number}: ours: {ours.message}\ntheirs: {theirs.message[:2000]}"
    assert ours.verdict is theirs.verdict, told
    if ours.verdict is not Verdict.REFUSED:
        # two layers may be the same, so theirs are compared as what they are, in order
        assert list(ours.layers.values()) == list(theirs.layers.values()), told
        assert not (found := difference(ours.dumps, theirs.dumps)), f"case {number}: {found}"
        assert ours.computed == theirs.computed, told


def _compare(peer: Peer, images: Sequence[Sequence[bytes]]) -> dict[Verdict, int]:
    """Compare images; how often there was which verdict."""
    verdicts = dict.fromkeys(Verdict, 0)
    for number, (tars, (way, theirs)) in enumerate(zip(images, peer.look(images), strict=True)):
        ours = _our_view(way, tars)
        _check(number, ours, theirs)
        verdicts[ours.verdict] += 1
    return verdicts


@pytest.fixture
def peer(tmp_path: Path, cfsctl: Path) -> Peer:
    """Empty repositories."""
    return Peer(tmp_path, cfsctl)


def _accepts(below: Sequence[bytes], tar: bytes) -> bool:
    tree = Tree(Algorithm.SHA256)
    with suppress(ComposefsdError):
        for one in (*below, tar):
            apply_layer(tree, *parse_tar(one, Algorithm.SHA256, {}))
        return True
    return False


def _random_image(sweep: Sweep, number: int) -> list[bytes]:
    rng = sweep.random(f"layers {number}")
    tars: list[bytes] = []
    maker = RandomLayers(rng, lambda tar: _accepts(tars, tar))
    tars.append(maker.first())
    for _ in range(rng.randrange(1, 5)):
        tars.append(maker.further())
    return tars


def test_random_layers_make_the_same_images(sweep: Sweep, peer: Peer, ledger: Ledger) -> None:
    images = [_random_image(sweep, number) for number in range(sweep.cases(_LAYOUTS))]
    verdicts = _compare(peer, images)
    assert verdicts[Verdict.IMAGES] > len(images) / 3
    ledger.record(
        "generated OCI layouts", "cfsctl oci pull, compute-id, dump, layer", len(images), _summary(verdicts)
    )


def test_random_policies_and_boot_trees_make_the_same_boot_images(sweep: Sweep, peer: Peer, ledger: Ledger) -> None:
    base = base_layer()
    makers = (RandomSystems(sweep.random(f"systems {number}")) for number in range(sweep.cases(_SYSTEMS)))
    images = [[base, maker.layer()] for maker in makers]
    verdicts = _compare(peer, images)
    assert verdicts[Verdict.IMAGES] > len(images) / 3
    area = "generated SELinux policies and boot trees"
    ledger.record(area, "cfsctl oci pull, compute-id --bootable, dump", len(images), _summary(verdicts))


def _summary(verdicts: dict[Verdict, int]) -> str:
    counts = ", ".join(f"{count} {verdict.value}" for verdict, count in verdicts.items() if count)
    return f"all the same ({counts})"
