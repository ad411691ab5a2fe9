"""One repository and the two tools that work on it, each through what its users have: cfsctl, and the bus."""

import gzip
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import zstandard
from dbus_next import Variant
from real import handmade, image
from real.bus import BOOT, MANAGER, OBJECT, REPOSITORY, Bus, BusError
from real.layers import (
    block_device,
    char_device,
    directory,
    fifo,
    hard_link,
    opaque,
    regular,
    symlink,
    tar_layer,
    whiteout,
)
from real.oci_layout import Compression, Layer, Layout, StoredLayer
from real.stage import Stage

from composefsd.digests import Algorithm
from composefsd.erofs.format import FormatVersion
from composefsd.oci.reference import Platform
from composefsd.repository import Metadata, Repository

IMAGES: Final = ("base", "again", "full", "rich")
"""The tags of `add_images` that any repository takes; `base` and `again` share their config, and so their images."""

YES: Final = Variant("b", True)  # noqa: FBT003
_PATIENCE_SECONDS: Final = 60.0
_CAPABILITY: Final = bytes.fromhex("0100000200200000000000000000000000000000")

Linked = frozenset[tuple[str, str, str]]
"""The composefs images of an OCI image: kind (`normative`, `boot`), format (`v1`, `v2`), digest in hexadecimal."""


class CfsctlError(Exception):
    """cfsctl failed; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Cfsctl:
    """cfsctl on a repository."""

    program: Path
    repository: Path

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), "--repo", str(self.repository), *arguments]

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Let it run; to be waited for by `finished`."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(self.command(*arguments), input=data, capture_output=True, check=False)

    def say(self, *arguments: str, data: bytes = b"") -> bytes:
        """What it prints.  Raises CfsctlError."""
        done = self.run(*arguments, data=data)
        if done.returncode != 0:
            raise CfsctlError(f"cfsctl {' '.join(arguments)}: {done.stderr.decode(errors='replace')[:2000]}")
        return done.stdout

    def ask(self, *arguments: str) -> Any:  # JSON
        """What it answers in JSON.  Raises CfsctlError."""
        return json.loads(self.say(*arguments))

    def init(self, *, algorithm: str = "sha512", version: int = 1) -> None:
        """Make the repository, without fs-verity."""
        self.say("init", "--insecure", f"--algorithm=fsverity-{algorithm}-12", f"--erofs-version={version}")

    def tags(self) -> dict[str, str]:
        """Manifest digests by tag."""
        return {one["name"]: one["manifest_digest"] for one in self.ask("oci", "images", "--json")["images"]}

    def linked(self, tag: str) -> Linked:
        """All composefs images of what a tag names; none are not told apart from one that is lost."""
        about = self.ask("oci", "inspect", tag)
        some = about["composefs_erofs"] or about["composefs_boot_erofs"]
        found = self.ask("oci", "linked-erofs-images", some) if some else []
        return frozenset(
            ("boot" if one["bootable"] else "normative", f"v{one['version']}", one["id"])
            for one in found
            if one["xattrMode"] in (None, "allowlist-only")
        )

    def document(self, tag: str, which: str) -> bytes:
        """The manifest or the config of what a tag names, byte for byte."""
        return self.say("oci", "inspect", tag, f"--{which}").removesuffix(b"\n")

    def is_sound(self) -> bool:
        """Whether its checks of the repository and of the OCI images succeed, however they fail."""
        return all(self.run(*check).returncode == 0 for check in (("fsck",), ("oci", "fsck")))

    def damage(self) -> list[str]:
        """What its check of the repository and of the OCI images finds."""
        found = self.ask("oci", "fsck", "--json")
        texts = [json.dumps(error) for error in (*found["errors"], *found["repo"]["errors"])]
        assert found["ok"] == (not texts)
        return texts


class Daemon:
    """composefsd over its bus, for one thread.  Every method raises BusError."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.bus = Bus(stage.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bus.__exit__()

    def pull(self, reference: str, name: str, **options: Variant) -> dict[str, Any]:
        """Pull, and move the name if another image has it."""
        options = {"replace": YES, **options}
        return self.bus.wait(self.start_pull(reference, name, **options)[0])

    def start_pull(self, reference: str, name: str, **options: Variant) -> tuple[int, str]:
        return self.bus.start(MANAGER, "Pull", reference, name=Variant("s", name), **options)

    def generate(self, name: str, kind: str = "all", version: str | None = None) -> dict[str, Any]:
        options = {} if version is None else {"format": Variant("s", version)}
        return self.bus.wait(self.bus.start(MANAGER, "Generate", name, kind, **options)[0])

    def compute(self, name: str, version: str) -> Linked:
        """The digests that both kinds of images would have in this format, as `linked` has them."""
        options = {"format": Variant("s", version)}
        made = self.bus.wait(self.bus.start(MANAGER, "ComputeDigest", name, "all", **options)[0])
        kinds = ("normative", "boot")
        return frozenset((kind, version, made[f"{kind}-digest"].rpartition(":")[2]) for kind in kinds)

    def deploy(self, name: str, *, kind: str = "uki") -> dict[str, Any]:
        """Deploy, for a disk that gets its fs-verity later."""
        options = {"verity": Variant("s", "deferred"), "type": Variant("s", kind)}
        return self.bus.wait(self.bus.start(BOOT, "Deploy", name, **options)[0])

    def tag(self, name: str, new: str) -> None:
        self.bus.call(OBJECT, MANAGER, "Tag", "ssa{sv}", name, new, {"replace": YES})

    def untag(self, name: str) -> None:
        self.bus.call(OBJECT, MANAGER, "Untag", "sa{sv}", name, {})

    def remove(self, name: str) -> list[str]:
        """Remove an image; the names that went."""
        (names,) = self.bus.call(OBJECT, MANAGER, "RemoveImage", "sa{sv}", name, {"force": YES})
        return list(names)

    def start_collecting(self, *, dry_run: bool = False) -> int:
        return self.bus.start(REPOSITORY, "CollectGarbage", **{"dry-run": Variant("b", dry_run)})[0]

    def collect(self, *, dry_run: bool = False) -> dict[str, Any]:
        return self.bus.wait(self.start_collecting(dry_run=dry_run))

    def listing(self) -> Iterator[tuple[str, list[str], str, dict[str, Any]]]:
        """Digest, names, path and properties of each image."""
        (rows,) = self.bus.call(OBJECT, MANAGER, "ListImages", "a{sv}", {})
        for digest, names, path, properties in rows:
            yield digest, list(names), path, {name: value.value for name, value in properties.items()}

    def tags(self) -> dict[str, str]:
        """Manifest digests by name."""
        return {name: digest for digest, names, _, _ in self.listing() for name in names}

    def linked(self, name: str) -> Linked:
        """All composefs images of what a name names, as `Cfsctl.linked` has them."""
        ((_, _, _, properties),) = (row for row in self.listing() if name in row[1])
        return frozenset(
            (kind, version, digest.rpartition(":")[2]) for kind, version, _, _, digest in properties["Digests"]
        )

    def document(self, name: str, which: str) -> bytes:
        (path,) = self.bus.call(OBJECT, MANAGER, "GetImage", "s", name)
        (text,) = self.bus.call(path, f"{MANAGER.rpartition('.')[0]}.Image", "ReadDocument", "sa{sv}", which, {})
        return str(text).encode()

    def findings(self, depth: str = "full") -> list[tuple[str, ...]]:
        """What its check finds: severity, code, subject and message of each."""
        result = self.bus.wait(self.bus.start(REPOSITORY, "Check", depth=Variant("s", depth))[0])
        return [tuple(map(str, finding)) for finding in result["findings"]]

    def damage(self, depth: str = "full") -> list[str]:
        """The same as text."""
        return [" ".join(finding) for finding in self.findings(depth)]

    def problems(self) -> list[str]:
        """The names of what keeps the repository from being used."""
        return [name.rpartition(".")[2] for name, _ in self.bus.get(OBJECT, MANAGER, "Problems")]


@contextmanager
def serving(
    folder: Path, *, algorithm: str = "sha512", formats: Iterable[FormatVersion] = (FormatVersion.V1,)
) -> Iterator[Daemon]:
    """A daemon in a new folder, with a repository of these image formats, the default first."""
    folder.mkdir(exist_ok=True)
    metadata = Metadata.new(Algorithm(algorithm), tuple(formats))
    Repository.create(folder / "repository", metadata, insecure=True).close()
    with serving_what_is_there(folder, algorithm=algorithm) as daemon:
        yield daemon


@contextmanager
def serving_what_is_there(folder: Path, *, algorithm: str = "sha512") -> Iterator[Daemon]:
    """A daemon on the repository of a folder."""
    with Stage(folder, algorithm=algorithm) as stage, Daemon(stage) as daemon:
        yield daemon


def error_of(call: Callable[[], object]) -> str:
    """The last word of the error's name that a call ends with, or nothing."""
    try:
        call()
    except BusError as error:
        return error.name.rpartition(".")[2]
    return ""


def finished(process: "subprocess.Popen[bytes]") -> bytes:
    """What a program said that has to end well."""
    output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
    assert process.returncode == 0, output.decode(errors="replace")
    return output


def wait_until(true: Callable[[], object], what: str, *, pause: float = 0.02) -> None:
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(pause)


def stays(true: Callable[[], object], seconds: float) -> bool:
    """Whether something is true for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not true():
            return False
        time.sleep(0.02)
    return True


# Images


def _rich_layer() -> bytes:
    """A layer with something of everything that a tree can hold, over the hand-made ones."""
    path, when = "usr/share/rich", 1750000000
    sizes = (0, 1, 64, 65, 4095, 4096, 4097, 70000)
    return tar_layer(
        (
            directory("usr/share", mtime_sec=when, mtime_nsec=1),
            directory(path, mode=0o1777, mtime_sec=when, mtime_nsec=123456789),
            *(regular(f"{path}/{size}", bytes([size % 251]) * size, uid=size, mtime_sec=when) for size in sizes),
            regular(f"{path}/capable", b"x" * 100, mode=0o4755, xattrs={"security.capability": _CAPABILITY}),
            regular(f"{path}/with-user-xattr", b"y" * 100, xattrs={"user.demo": b"\0\xff"}),
            hard_link(f"{path}/linked", f"{path}/4097"),
            hard_link("usr/bin/other-tool", "usr/bin/tool"),
            symlink(f"{path}/dangling", "../" * 40 + "nowhere"),
            fifo(f"{path}/fifo", mode=0o600),
            char_device(f"{path}/null", 1, 3, mode=0o666),
            block_device(f"{path}/disk", 8, 1),
            regular(path.encode() + b"/latin-1-\xe9 and a space", b"bytes, not text"),
            regular(f"{path}/{'n' * 255}", b"z" * 65),
            directory(f"{path}/empty", mode=0o700, uid=70000, gid=70000),
            whiteout("usr/bin/obsolete"),
            directory("var"),
            opaque("var"),
        )
    )


def add_images(folder: Path) -> Layout:
    """An image layout with `IMAGES`, and `os` and `os-sha256`, whose UKI names the boot image in that hash."""
    layout = Layout(folder)
    layers = list(handmade.layers())
    config: dict[str, Any] = {"architecture": Platform.host().architecture}
    layout.add_image("base", layers[:2], config=config)
    layout.add_image("again", [Layer(layer, Compression.ZSTD) for layer in layers[:2]], config=config)
    layout.add_image("full", [*layers[:2], Layer(layers[2], Compression.NONE)], config=config)
    layout.add_image("rich", [*layers[:2], Layer(_rich_layer(), Compression.ZSTD)], config=config)
    sealed = Layout(image.handmade_image("").layout)
    for tag in map(image.tag, image.HASHES):
        layout.set_tag(tag, layout.adopt(sealed, sealed.read_image(tag)).manifest)
    return layout


def reference(layout: Layout, tag: str) -> str:
    """An image of a layout, as both tools take it."""
    return f"oci:{layout.path}:{tag}"


def plain_tar(layout: Layout, layer: StoredLayer) -> bytes:
    """A layer of a layout, unpacked."""
    packed = layout.blob_path(layer.blob.digest).read_bytes()
    if layer.blob.media_type.endswith("+gzip"):
        return gzip.decompress(packed)
    if layer.blob.media_type.endswith("+zstd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    return packed
