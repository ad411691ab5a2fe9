"""Boot images by the rules of earlier versions have the digests that these versions gave them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from interop.oci_ours import parse_tar
from real import drifting

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import compute_id
from composefsd.oci.storage import ImageKind
from composefsd.operations.transformed import Trees
from composefsd.operations.variants import ImageOrder
from composefsd.tree.merge import apply_layer
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile
from composefsd.tree.table import Tree

VECTORS: Final = Path(__file__).parents[2] / "vectors/profiles"
PROFILES: Final = {path: Profile(path.stem.removeprefix("cfsctl-")) for path in sorted(VECTORS.glob("*.json"))}
TIMES: Final = {"whole": drifting.WHOLE, "split": drifting.SPLIT, "equal": drifting.EQUAL}
XATTRS: Final = {"no": drifting.NO_XATTRS, "user": drifting.USER, "many": drifting.MANY}


def cases() -> Iterator[Any]:
    for path, profile in PROFILES.items():
        for case in json.loads(path.read_text())["cases"]:
            name = " ".join(str(case[key]) for key in ("times", "xattrs", "policy", "hash"))
            yield pytest.param(profile, case, id=f"{profile} {name}")


def trees(case: Mapping[str, Any]) -> Trees:
    algorithm, contents = Algorithm(case["hash"]), dict[bytes, bytes]()
    tar = drifting.base(TIMES[case["times"]], XATTRS[case["xattrs"]], policy=case["policy"])
    assert hashlib.sha256(tar).hexdigest() == case["layer"], "the image is not the one that the vector was made of"
    merged = Tree(algorithm)
    apply_layer(merged, *parse_tar(tar, algorithm, contents))
    merged.freeze()
    return Trees(merged, lambda digest, _limit: contents[digest])


@pytest.mark.parametrize(("profile", "case"), list(cases()))
def test_an_image_has_the_digests_of_that_version(profile: Profile, case: Mapping[str, Any]) -> None:
    made = trees(case)
    found = {}
    for name in case["digests"]:
        version, mode = name.split()
        order = ImageOrder(ImageKind.BOOT, FormatVersion.from_label(version), XattrMode(mode), profile)
        found[name] = compute_id(made.get(order), order.format).hex
    assert found == case["digests"]


@pytest.mark.parametrize(("path", "profile"), list(PROFILES.items()), ids=list(PROFILES.values()))
def test_the_vectors_show_what_has_changed_since(path: Path, profile: Profile) -> None:
    differing = 0
    for case in json.loads(path.read_text())["cases"]:
        order = ImageOrder(ImageKind.BOOT, FormatVersion.V1, XattrMode.ALLOWLIST_ONLY)
        differing += compute_id(trees(case).get(order), order.format).hex != case["digests"]["v1 allowlist-only"]
    assert differing, profile
