"""Input and hosts that are bad in one way each: a named error on the bus, one line on the command line, no change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from dbus_next import Variant
from real import image, mounted, recipe, snapshot
from real.bus import BOOT, MANAGER, SERVICE, Bus, BusError
from real.layers import directory, regular, tar_layer
from real.oci_layout import Blob, Compression, Image, Layer, Layout
from real.stage import Stage

DEFERRED = Variant("s", "deferred")
can_mount = pytest.mark.skipif(bool(mounted.why_not()), reason=mounted.why_not())

_CONTENT = bytes(range(256)) * 40
_GOOD = tar_layer((directory("usr"), regular("usr/file", _CONTENT)))


@dataclass(frozen=True, slots=True)
class State:
    """All that a failed operation must leave alone."""

    names: dict[str, str]
    objects: dict[str, tuple[int, int, int]]
    images: object
    esp: tuple[str, ...]

    @classmethod
    def of(cls, stage: Stage) -> "State":
        esp = tuple(sorted(snapshot.files(stage.esp)))
        links, objects = snapshot.links(stage.repository), snapshot.objects(stage.repository)
        return cls(links, objects, stage.ask("images"), esp)

    def is_kept_in(self, later: "State") -> bool:
        """Whether nothing was changed.  A layer or an object that was complete before the failure may have come."""
        added = later.names.keys() - self.names.keys()
        return (
            self.names.items() <= later.names.items()
            and all(name.startswith("streams/oci-layer-") for name in added)
            and self.objects.items() <= later.objects.items()
            and (self.images, self.esp) == (later.images, later.esp)
        )


@pytest.fixture(scope="module")
def stage(scratch: Path) -> Iterator[Stage]:
    """A daemon with the hand-made image, deployed."""
    folder = scratch / "bad-input"
    folder.mkdir()
    with Stage(folder) as found:
        found.ask("pull", image.handmade_image("is enough here").reference(), "--name=good")
        found.ask("deploy", "good", "--verity=deferred")
        yield found


def truncated(layout: Layout) -> Image:
    made = layout.add_image("bad", [_GOOD])
    path = layout.blob_path(made.layers[0].blob.digest)
    path.write_bytes(path.read_bytes()[:-7])
    return made


def swapped(layout: Layout) -> Image:
    made = layout.add_image("bad", [Layer(_GOOD, Compression.NONE)])
    path = layout.blob_path(made.layers[0].blob.digest)
    path.write_bytes(path.read_bytes().replace(_CONTENT, _CONTENT[::-1]))
    return made


def other_diff_id(layout: Layout) -> Image:
    return layout.add_image("bad", [replace(layout.add_layer(Layer(_GOOD)), diff_id=f"sha256:{'0' * 64}")])


def no_tar(layout: Layout) -> Image:
    return layout.add_image("bad", [b"this is not a tar archive, not at all\n" * 400])


def no_gzip(layout: Layout) -> Image:
    plain = layout.add_layer(Layer(_GOOD, Compression.NONE))
    blob = replace(plain.blob, media_type=plain.blob.media_type + "+gzip")
    return layout.add_image("bad", [replace(plain, blob=blob)])


def upwards(layout: Layout) -> Image:
    return layout.add_image("bad", [tar_layer((directory("usr"), regular("usr/../../escaped", _CONTENT)))])


def absolute_upwards(layout: Layout) -> Image:
    return layout.add_image("bad", [tar_layer((directory("/usr"), regular("/../etc/escaped", _CONTENT)))])


def no_config(layout: Layout) -> Image:
    made = layout.add_image("bad", [_GOOD])
    layout.blob_path(made.config.digest).unlink()
    return made


def no_layer(layout: Layout) -> Image:
    made = layout.add_image("bad", [_GOOD])
    layout.blob_path(made.layers[0].blob.digest).unlink()
    return made


def unknown_layer_type(layout: Layout) -> Image:
    stored = layout.add_layer(Layer(_GOOD))
    blob = replace(stored.blob, media_type="application/vnd.example.layer.v1.tar+rar")
    return layout.add_image("bad", [replace(stored, blob=blob)])


def unknown_hash(layout: Layout) -> Image:
    stored = layout.add_layer(Layer(_GOOD))
    return layout.add_image("bad", [replace(stored, blob=replace(stored.blob, digest=f"md5:{'0' * 32}"))])


def no_manifest(layout: Layout) -> Image:
    made = layout.add_image("bad", [_GOOD])
    document = b"[" * 10000
    layout.set_tag("bad", Blob(made.manifest.media_type, layout.add_blob(document, "").digest, len(document)))
    return made


def no_usr(layout: Layout) -> Image:
    return layout.add_image("bad", [tar_layer((directory("etc"),))])


BAD_IMAGES: dict[Callable[[Layout], Image], str] = {
    truncated: "Format",
    swapped: "DigestMismatch",
    other_diff_id: "DigestMismatch",
    no_tar: "Format",
    no_gzip: "Format",
    upwards: "Format",
    absolute_upwards: "Format",
    no_config: "SourceNotFound",
    no_layer: "SourceNotFound",
    unknown_layer_type: "Unsupported",
    unknown_hash: "Format",
    no_manifest: "Format",
    no_usr: "Format",
}


def fails_on_the_bus(stage: Stage, interface: str, member: str, *arguments: str, **options: Variant) -> str:
    """The error of a job, without the prefix of our names."""
    with Bus(stage.address) as bus, pytest.raises(BusError) as caught:
        bus.wait(bus.start(interface, member, *arguments, **options)[0])
    assert "\n" not in caught.value.text.strip()
    return caught.value.name.removeprefix(f"{SERVICE}.Error.")


def assert_one_line_on_the_command_line(stage: Stage, *arguments: str) -> None:
    done = stage.run(*arguments)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("composefsctl: ")
    assert "Traceback" not in stage.log.read_text()


@pytest.mark.parametrize(("make", "error"), BAD_IMAGES.items(), ids=[make.__name__ for make in BAD_IMAGES])
def test_a_bad_image_is_refused_by_name_and_changes_nothing(
    make: Callable[[Layout], Image], error: str, stage: Stage, tmp_path: Path
) -> None:
    make(Layout(tmp_path / "oci"))
    reference, before = f"oci:{tmp_path}/oci:bad", State.of(stage)
    assert fails_on_the_bus(stage, MANAGER, "Pull", reference) == error
    assert_one_line_on_the_command_line(stage, "pull", reference)
    assert before.is_kept_in(State.of(stage))


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("oci:/nonexistent/layout:tag", "SourceNotFound"),
        ("carrier-pigeon:coop", "InvalidReference"),
        ("", "InvalidReference"),
    ],
)
def test_a_bad_reference_is_refused_by_name(reference: str, error: str, stage: Stage) -> None:
    before = State.of(stage)
    assert fails_on_the_bus(stage, MANAGER, "Pull", reference) == error
    assert_one_line_on_the_command_line(stage, "pull", reference)
    assert before.is_kept_in(State.of(stage))


@pytest.mark.parametrize(("option", "value"), [("hash", "sha256"), ("format", "v2")])
def test_a_hash_or_format_that_the_repository_lacks_is_unsupported(option: str, value: str, stage: Stage) -> None:
    before = State.of(stage)
    error = fails_on_the_bus(stage, MANAGER, "Generate", "good", "all", **{option: Variant("s", value)})
    assert error == "Unsupported"
    assert_one_line_on_the_command_line(stage, "generate", "good", f"--{option}={value}")
    assert before.is_kept_in(State.of(stage))


def test_an_image_that_cannot_boot_is_not_deployed(stage: Stage, tmp_path: Path) -> None:
    Layout(tmp_path / "oci").add_image(
        "plain", [tar_layer((directory("usr"), directory("boot"), directory("sysroot")))]
    )
    stage.ask("pull", f"oci:{tmp_path}/oci:plain", "--name=plain", "--generate=normative")
    before = State.of(stage)
    assert fails_on_the_bus(stage, BOOT, "Deploy", "plain", verity=DEFERRED) == "NotBootable"
    assert_one_line_on_the_command_line(stage, "deploy", "plain", "--verity=deferred")
    assert before.is_kept_in(State.of(stage))


def test_a_uki_that_names_another_digest_is_not_deployed(stage: Stage, tmp_path: Path) -> None:
    good = image.handmade_image("is enough here")
    source, layout = Layout(good.layout), Layout(tmp_path / "oci")
    layers = layout.adopt(source, source.read_image("os")).layers[:-1]
    wrong = image.handmade.uki(f"composefs.digest=v1-sha512-12:{'0' * 128}")
    layout.add_image("wrong", [*layers, Layer(recipe.uki_layer(image.UKI, wrong))])
    stage.ask("pull", f"oci:{tmp_path}/oci:wrong", "--name=wrong")
    before = State.of(stage)
    assert fails_on_the_bus(stage, BOOT, "Deploy", "wrong", verity=DEFERRED) == "NotBootable"
    assert_one_line_on_the_command_line(stage, "deploy", "wrong", "--verity=deferred")
    assert before.is_kept_in(State.of(stage))


def test_the_repository_is_clean_after_all_that(stage: Stage) -> None:
    assert stage.ask("fsck", "--depth=full")["findings_total"] == 0


def on(mount: str, place: Path) -> list[str]:
    """A command that gives the daemon a mount of its own before it starts; `$0` stands for the place."""
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", f'{mount} && exec "$@"', str(place)]


@can_mount
def test_a_full_esp_is_told_before_anything_is_written(scratch: Path, tmp_path: Path) -> None:
    folder = scratch / "esp-full"
    folder.mkdir()
    layout = Layout(tmp_path / "oci")
    layers = layout.add_image("base", list(image.handmade.layers())).layers
    digest = image.compute_id(layout.path, "sha512")
    uki = image.handmade.uki(f"composefs.digest=v1-sha512-12:{digest}", initrd=bytes(3 << 20))
    layout.add_image("big", [*layers, Layer(recipe.uki_layer(image.UKI, uki))])
    stage = Stage(folder)
    try:
        stage.start_bus()
        stage.start(on('mount -t tmpfs -o size=2m tmpfs "$0"', stage.esp))
        stage.ask("pull", f"oci:{tmp_path}/oci:big", "--name=big")
        before = State.of(stage)
        assert fails_on_the_bus(stage, BOOT, "Deploy", "big", verity=DEFERRED) == "NoSpace"
        assert_one_line_on_the_command_line(stage, "deploy", "big", "--verity=deferred")
        assert before.is_kept_in(State.of(stage))
        assert stage.ask("deployments") == []
    finally:
        stage.close()


@can_mount
def test_a_read_only_repository_is_read_and_never_written(scratch: Path) -> None:
    folder = scratch / "read-only"
    folder.mkdir()
    reference = image.handmade_image("is enough here").reference()
    with Stage(folder) as stage:
        stage.ask("pull", reference, "--name=good")
        before = State.of(stage)
        stage.stop()
        stage.start(on('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', stage.repository))
        assert fails_on_the_bus(stage, MANAGER, "Pull", reference, name=Variant("s", "other")) == "ReadOnly"
        assert_one_line_on_the_command_line(stage, "pull", reference, "--name=other")
        assert_one_line_on_the_command_line(stage, "tag", "good", "other")
        assert stage.ask("status")["problems"]
        assert State.of(stage) == before
