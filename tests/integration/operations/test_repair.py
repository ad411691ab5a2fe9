"""Every kind of damage: found by its code, mended from what is there or from the source, or left with the reason."""

import asyncio
import gzip
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from real import handmade
from real.damage import (
    DAMAGES,
    Damage,
    Victim,
    delete_config_stream,
    delete_file,
    delete_image,
    delete_manifest_stream,
    flip_file,
    layer_cut_wrongly,
    stray_temporary,
)
from real.layers import tar_layer
from real.oci_layout import MANIFEST_TYPE, Blob, Layout

from composefsd import errors
from composefsd.oci.reference import Reference
from composefsd.operations import images
from composefsd.operations.check import check
from composefsd.operations.collect import collect_garbage
from composefsd.operations.facts import add_reference, forget_facts
from composefsd.operations.host import Host, Settings
from composefsd.operations.model import CheckResult, ImageInfo, PullRequest
from composefsd.operations.progress import Silent, Stage
from composefsd.operations.pull import pull
from composefsd.operations.repair import repair
from composefsd.repository import Repository


def run(work: Any) -> Any:
    return asyncio.run(work)


def do_pull(host: Host, layout: Layout, tag: str = "os") -> None:
    run(pull(host, PullRequest(Reference.parse(f"oci:{layout.path}:{tag}"), name=tag), Silent()))


def do_check(host: Host, depth: str = "full") -> CheckResult:
    result = run(check(host, depth=depth, image=None, max_findings=1000, progress=Silent()))
    assert isinstance(result, CheckResult)
    return result


def do_repair(host: Host, depth: str = "full", **options: Any) -> CheckResult:
    wanted = {"image": None, "max_findings": 1000, "progress": Silent()} | options
    result = run(repair(host, depth=depth, **wanted))
    assert isinstance(result, CheckResult)
    return result


def found(result: CheckResult) -> set[tuple[str, str]]:
    return {(one.code, one.subject) for one in result.findings}


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a layout that has the hand-made image, a repository that it was pulled into, and the state."""
    folder = tmp_path_factory.mktemp("pulled")
    layout = Layout(folder / "oci")
    layout.add_image("os", list(handmade.layers()))
    settings = Settings(
        folder / "repository", folder / "sysroot", esp=None, xbootldr=None, state=folder / "state", insecure=True
    )
    do_pull(Host.open(settings), layout)
    return folder


@pytest.fixture
def filled(pulled: Path, tmp_path: Path, make_host: Callable[..., Host]) -> Host:
    """A host of which the repository is a copy; it knows the same source."""
    for name in ("repository", "state"):
        shutil.copytree(pulled / name, tmp_path / name, symlinks=True)
    return make_host()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_found_and_mended_or_left_with_the_reason(filled: Host, damage: Damage) -> None:
    root = filled.settings.repository
    subject = damage.apply(root)
    if damage.code == "metadata-parse-failed":  # nothing can be written to it any more
        assert found(do_check(filled, damage.depth)) == {(damage.code, subject)}
        return
    result = do_repair(filled, damage.depth)
    if damage.is_repaired:
        assert result.findings == ()
        assert (damage.code, subject) in {(one.code, one.subject) for one in result.repaired}
        assert damage.depth == "full" or do_check(filled).findings == ()
    else:
        assert (damage.code, subject) in found(result)
        assert all(one.facts["unrepaired"] for one in result.findings)


def put_file(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_a_file_of_another_layer_in_the_place_of_a_name_does_not_get_it(filled: Host) -> None:
    """Nothing vouches for a file: what the image refers to is put there, or else nothing is."""
    root = filled.settings.repository
    victim = Victim(root)
    (name, _, digest), (_, _, other) = victim.layers[:2]
    put_file(root / "streams" / name, victim.path(other).read_bytes())
    assert do_repair(filled, "quick").findings == ()
    with Repository.open(root) as repository:
        assert repository.stream(name) == digest
        unused = f"oci-layer-sha256:{'0' * 64}"
    (root / "streams" / unused).write_bytes(victim.path(other).read_bytes())
    assert found(do_repair(filled, "quick")) == {("entry-not-symlink", f"streams/{unused}")}
    assert not (root / "streams" / unused).is_symlink()


# Sources


@pytest.fixture
def own_source(filled: Host, pulled: Path, tmp_path: Path) -> Layout:
    """A copy of the source for a test to change; the host knows no other one."""
    shutil.copytree(pulled / "oci", tmp_path / "own")
    manifest = the_image(filled).manifest_digest
    forget_facts(filled.settings.state, manifest)
    add_reference(filled.settings.state, manifest, f"oci:{tmp_path}/own:os")
    return Layout(tmp_path / "own")


def the_image(host: Host, name: str = "os") -> ImageInfo:
    return images.resolve(run(images.list_images(host)), name)


def why(result: CheckResult, code: str) -> str:
    """Why the finding of this code is left."""
    (text,) = {one.facts["unrepaired"] for one in result.findings if one.code == code}
    return text


def tree(host: Host) -> dict[str, bytes | str]:
    """Everything in the repository but what is temporary."""
    root = host.settings.repository
    found: dict[str, bytes | str] = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(root))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def test_a_source_that_is_gone_leaves_the_finding_and_the_repository_as_it_was(
    filled: Host, own_source: Layout
) -> None:
    flip_file(filled.settings.repository)
    before = tree(filled)
    own_source.path.rename(own_source.path.with_name("away"))
    result = do_repair(filled)
    assert result.repaired == ()
    assert str(own_source.path) in why(result, "layer-digest-mismatch")
    assert "brought back" in why(result, "object-digest-mismatch")
    assert tree(filled) == before


def test_a_source_with_other_content_leaves_the_finding_and_says_so(filled: Host, own_source: Layout) -> None:
    flip_file(filled.settings.repository)
    layer = own_source.read_image("os").layers[0]
    path = own_source.blob_path(layer.blob.digest)
    data = path.read_bytes()
    path.write_bytes(gzip.compress(tar_layer(())).ljust(len(data), b"\0"))  # gzip(1) allows for zeros at the end
    result = do_repair(filled)
    told = why(result, "layer-digest-mismatch")
    assert layer.blob.digest in told or layer.diff_id in told
    assert "object-digest-mismatch" in {one.code for one in result.findings}
    path.write_bytes(data)
    assert do_repair(filled).findings == ()


def test_only_the_damaged_layer_is_read(filled: Host, own_source: Layout) -> None:
    flip_file(filled.settings.repository)
    image = own_source.read_image("os")
    for blob in (image.manifest, image.config, *(layer.blob for layer in image.layers[1:])):
        own_source.blob_path(blob.digest).unlink()
    (own_source.path / "index.json").unlink()
    assert do_repair(filled).findings == ()


def test_the_next_source_is_asked_where_the_first_one_fails(filled: Host, own_source: Layout, pulled: Path) -> None:
    flip_file(filled.settings.repository)
    add_reference(filled.settings.state, the_image(filled).manifest_digest, "oci:/nowhere:os")
    result = do_repair(filled)
    assert result.findings == ()
    assert f"fetched again from oci:{own_source.path}:os" in {one.how for one in result.repaired}


def test_an_image_of_another_tool_has_no_source_and_the_finding_says_so(filled: Host) -> None:
    forget_facts(filled.settings.state, the_image(filled).manifest_digest)
    flip_file(filled.settings.repository)
    result = do_repair(filled)
    assert "pull it again" in why(result, "layer-digest-mismatch")


def test_a_manifest_is_found_again_in_its_source_under_whatever_name(filled: Host, own_source: Layout) -> None:
    own_source.set_tag("os", own_source.add_image("other", [next(handmade.layers())]).manifest)
    own_source.set_tag("renamed", image_of(filled))
    delete_manifest_stream(filled.settings.repository)
    result = do_repair(filled)
    assert result.findings == ()
    assert the_image(filled).names == ("os",)


def image_of(host: Host) -> Blob:
    digest = str(the_image(host).manifest_digest)
    data = run(images.document(host, the_image(host).manifest_digest, "manifest"))
    return Blob(MANIFEST_TYPE, digest, len(data))


# What else a repair must and must not do


def test_who_has_a_damaged_object_open_keeps_it(filled: Host) -> None:
    path = filled.settings.repository / flip_file(filled.settings.repository)
    damaged = path.read_bytes()
    with path.open("rb") as mounted:
        assert do_repair(filled).findings == ()
        assert mounted.read() == damaged != path.read_bytes()


def test_the_images_of_a_lost_config_are_made_again(filled: Host) -> None:
    before = the_image(filled).images
    delete_config_stream(filled.settings.repository)
    assert do_repair(filled, "quick").findings == ()
    assert the_image(filled).images == before


def test_much_damage_is_mended_at_once(filled: Host) -> None:
    root = filled.settings.repository
    victim = Victim(root)
    for path in (*(victim.path(stream) for _, _, stream in victim.layers), victim.path(victim.image.digest)):
        path.unlink()
    for path in (root / "images").iterdir():
        if path.is_symlink():
            path.unlink()
    stray_temporary(root)
    result = do_repair(filled)
    assert result.findings == ()
    assert do_check(filled).findings == ()
    assert do_repair(filled).repaired == ()


@pytest.fixture
def shared(filled: Host, own_source: Layout) -> Host:
    """A host with two images that have their layers in common; of the second one no source is known."""
    image = own_source.read_image("os")
    own_source.add_image("twin", list(image.layers), config={"author": "twin"})
    do_pull(filled, own_source, "twin")
    forget_facts(filled.settings.state, the_image(filled, "twin").manifest_digest)
    return filled


@pytest.mark.parametrize("of_one", [False, True])
def test_images_with_a_layer_in_common_are_mended_together_and_stay_together(shared: Host, *, of_one: bool) -> None:
    """A wrongly cut layer gets another stream, so that all images have to name that."""
    root = shared.settings.repository
    layer_cut_wrongly(root)
    image = the_image(shared, "os").manifest_digest if of_one else None
    assert do_repair(shared, image=image).findings == ()
    assert do_check(shared).findings == ()
    run(collect_garbage(shared, dry_run=False, progress=Silent()))
    assert do_check(shared).findings == ()
    assert {name for one in run(images.list_images(shared)) for name in one.names} == {"os", "twin"}


class _Stop(Silent):
    """Cancels the operation when it enters its stage of this number."""

    def __init__(self, number: int) -> None:
        self.left = number

    def stage(self, stage: Stage) -> None:
        self.left -= 1
        if self.left < 0:
            raise asyncio.CancelledError


@pytest.mark.parametrize("number", range(1, 6))
def test_a_repair_that_is_stopped_makes_nothing_worse_and_can_be_done_again(filled: Host, number: int) -> None:
    root = filled.settings.repository
    flip_file(root)
    delete_image(root)
    codes = {one.code for one in do_check(filled).findings}
    with suppress(asyncio.CancelledError):
        run(repair(filled, depth="full", image=None, max_findings=10, progress=_Stop(number)))
    assert {one.code for one in do_check(filled).findings} <= codes | {"repair-unfinished", "stray-temporary"}
    assert do_repair(filled).findings == ()


def test_what_another_tool_may_be_writing_is_left_while_it_holds_the_repository(filled: Host) -> None:
    root = filled.settings.repository
    name = stray_temporary(root)
    with Repository.open(root) as other, other.shared_lock():
        result = do_repair(filled)
    assert "somebody else" in why(result, "stray-temporary")
    assert (root / name).exists()


def test_nothing_is_repaired_where_nothing_may_be_written(make_host: Callable[..., Host], filled: Host) -> None:
    with pytest.raises(errors.VerityRequiredError):
        do_repair(make_host(insecure=False))
    with pytest.raises(errors.InvalidArgumentsError):
        do_repair(filled, "deepest")


def test_a_layer_of_an_artifact_is_fetched_again(host: Host, layout: Layout) -> None:
    layout.add_artifact(
        "os", [layout.add_blob(b"some data of it " * 100 * number, "text/plain") for number in (1, 2)]
    )
    do_pull(host, layout)
    assert do_check(host).findings == ()
    for damage, code in ((flip_file, "object-digest-mismatch"), (delete_file, "artifact-layer-object-missing")):
        damage(host.settings.repository)
        assert code in {one.code for one in do_check(host).findings}
        assert do_repair(host).findings == ()
