"""The operating system image of the demo and of the integration tests, as an OCI layout.

A real Debian 13 with its kernel, cut into layers by hand so that a later one deletes, replaces, hides and links what
an earlier one brought.  The last layer adds the UKI, whose command line names the boot image of the whole: possible
because a boot image has an empty /boot.  Layers are cached by this recipe, the UKI by the digest in it as well.
Where no Debian can be built there is a hand-made image of a few files instead, see `handmade`.
"""

import os
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from real import apt, cache, handmade, recipe, root
from real.layers import Entry, directory, tar_layer, write_tar
from real.oci_layout import Compression, Layer, Layout, StoredLayer

HASHES: Final = ("sha512", "sha256")
"""The image comes twice: once with a UKI for either kind of repository."""

UKI: Final = "boot/EFI/Linux/demo.efi"
"""Where the UKI lies in the image."""

CMDLINE: Final = "root=LABEL=root rw console=ttyS0"
"""What stands on the UKI's command line beside the digest."""

PACKAGE: Final = Path(__file__).parents[2] / "composefsd"
_EMPTIED: Final = re.compile(r"(dev|proc|sys|tmp|boot|var/cache|var/lib/apt/lists|usr/lib/modules)/.+")
_KERNEL: Final = (
    (re.compile(r"boot/vmlinuz-(.+)"), r"usr/lib/modules/\1/vmlinuz"),
    (re.compile(r"boot/initrd\.img-(.+)"), r"usr/lib/modules/\1/initramfs.img"),
    (re.compile(r"(usr/lib/modules/.+)"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class DemoImage:
    """The finished layout: tag `os` is for SHA-512 repositories, `os-sha256` for SHA-256 ones.

    `digests` are the boot images that the two UKIs name (bare hexadecimal, by hash); `missing` tells why the layout
    is only the hand-made one, or is empty.
    """

    layout: Path
    digests: dict[str, str]
    missing: str = ""

    def reference(self, algorithm: str = "sha512") -> str:
        """The image as a pull's argument."""
        return f"oci:{self.layout}:{tag(algorithm)}"


def tag(algorithm: str) -> str:
    """The tag of the image whose UKI names a digest of this hash."""
    return "os" if algorithm == "sha512" else f"os-{algorithm}"


def base_place(path: str) -> str | None:
    """Where a file of the root lies in the first layer; None if it is not of it."""
    return None if _EMPTIED.fullmatch(path) else path


def kernel_place(path: str) -> str | None:
    """Where a file of the root lies in the kernel's layer; None if it is not of it."""
    return next((match.expand(place) for pattern, place in _KERNEL if (match := pattern.fullmatch(path))), None)


def _read_root(tar: Path, place: Callable[[str], str | None]) -> Iterator[Entry]:
    """The members of the root's tar that `place` gives a path, with everything that the tar tells about them."""
    with tarfile.open(tar, "r|", encoding="utf-8") as archive:
        for member in archive:
            path = place(member.name.removeprefix("./"))
            if path is None:
                continue
            content = archive.extractfile(member) if member.isreg() else None
            pax = member.pax_headers
            yield Entry(
                path=path,
                type=member.type,
                content=content.read() if content else b"",
                link=member.linkname.removeprefix("./") if member.islnk() else member.linkname,
                mode=member.mode,
                uid=member.uid,
                gid=member.gid,
                mtime_sec=int(member.mtime),
                device=(member.devmajor, member.devminor),
                xattrs={
                    name.removeprefix("SCHILY.xattr."): os.fsencode(value)
                    for name, value in pax.items()
                    if name.startswith("SCHILY.xattr.")
                },
            )


def _config() -> dict[str, object]:
    labels = {"containers.bootc": "1", "org.opencontainers.image.title": "composefs demo"}
    labels["org.opencontainers.image.version"] = "13"
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {"architecture": architecture, "config": {"Labels": labels, "Cmd": ["/sbin/init"]}}


def _write_layers(work: Path, debian: root.Root) -> None:
    """The layout without a UKI, tagged `base`."""
    layout = Layout(work / "oci")
    os_release = (debian.tree / "usr/lib/os-release").read_bytes()
    with TemporaryDirectory(dir=work) as folder:
        base, kernel = Path(folder) / "base.tar", Path(folder) / "kernel.tar"
        with base.open("wb") as output:
            write_tar((*_read_root(debian.tar, base_place), *recipe.base_additions()), output)
        with kernel.open("wb") as output:  # sorted: the kernel is moved below a directory that comes after it
            write_tar(sorted(_read_root(debian.tar, kernel_place), key=lambda entry: str(entry.path)), output)
        layers = (
            Layer(base, Compression.GZIP),
            Layer(kernel, Compression.ZSTD),
            Layer(tar_layer(recipe.changes(os_release)), Compression.GZIP),
            Layer(tar_layer(recipe.more_changes()), Compression.NONE),
        )
        layout.add_image("base", layers, config=_config())


def _write_handmade(work: Path) -> None:
    layers = [Layer(tar, Compression.GZIP) for tar in handmade.layers()]
    Layout(work / "oci").add_image("base", layers, config=_config())


def compute_id(layout: Path, algorithm: str) -> str:
    """What our own command line says about the boot image of the layout without a UKI."""
    command = [str(Path(sys.executable).with_name("composefsctl")), "compute-id", "--bootable", "--format", "v1"]
    command += ["--hash", algorithm, f"oci:{layout}:base"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="ascii").stdout.strip()


def _digests(base: Path) -> dict[str, str]:
    """The boot image by hash, computed again when the code that computes it has changed."""

    def build(work: Path) -> None:
        for algorithm in HASHES:
            (work / algorithm).write_text(compute_id(base / "oci", algorithm))

    made_from = cache.key(base.name, *sorted(PACKAGE.rglob("*.py")))
    cached = cache.ensure("digests", made_from, build, saying="Computing the digests of the boot image")
    return {algorithm: (cached / algorithm).read_text() for algorithm in HASHES}


def _make_uki(debian: root.Root, cmdline: str) -> bytes:
    """A UKI of the root's own kernel and initrd, made by the root's own ukify."""
    (kernel,) = (debian.tree / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    with TemporaryDirectory(dir=debian.tree / "var/tmp") as folder:
        inside = f"/var/tmp/{Path(folder).name}"
        arguments = [f"--linux=/boot/{kernel.name}", f"--initrd=/boot/initrd.img-{version}", f"--uname={version}"]
        arguments += [f"--cmdline={cmdline}", "--os-release=@/usr/lib/os-release", f"--stub={debian.stub}"]
        debian.run("ukify", "build", *arguments, f"--output={inside}/uki")
        return (Path(folder) / "uki").read_bytes()


def _seal(base: Path, make_uki: Callable[[str], bytes]) -> DemoImage:
    """The layout with two tags, whose last layers differ in the digest that the UKI's command line names."""
    digests = _digests(base)

    def build(work: Path) -> None:
        source, layout = Layout(base / "oci"), Layout(work / "oci")
        image = layout.adopt(source, source.read_image("base"))
        for algorithm, digest in digests.items():
            uki = make_uki(f"composefs.digest=v1-{algorithm}-12:{digest} {CMDLINE}")
            last = Layer(recipe.uki_layer(UKI, uki), Compression.ZSTD)
            layers: list[StoredLayer | Layer] = [*image.layers, last]
            layout.add_image(tag(algorithm), layers, config=_config())

    made_from = cache.key(base.name, *digests.values())
    path = cache.ensure("image", made_from, build, saying="Adding the UKI, whose command line names the boot image")
    return DemoImage(path / "oci", digests)


def _sources() -> list[Path]:
    names = ("handmade.py", "image.py", "layers.py", "oci_layout.py", "recipe.py")
    return [Path(__file__).with_name(name) for name in names]


def debian_image() -> DemoImage:
    """The image of a Debian 13, of which everything that is not there yet is built and cached.

    Raises UnavailableError where no root file system can be built.
    """
    debian = root.ensure()
    made_from = cache.key(debian.tar.parent.name, *_sources())
    saying = "Packing it as an OCI image of several layers"
    base = cache.ensure("layers", made_from, lambda work: _write_layers(work, debian), saying=saying)
    return _seal(base, lambda cmdline: _make_uki(debian, cmdline))


def _write_cut(work: Path, debian: root.Root) -> None:
    """A fifth of the system, in layers of the three kinds."""
    pieces = (
        (r"(boot|run|usr|var|etc(/.+)?)", Compression.GZIP),
        (r"usr/bin(/.+)?", Compression.NONE),
        (r"usr/lib(/systemd(/.+)?)?", Compression.ZSTD),
    )
    layers = [Layer(tar_layer([directory("sysroot")]))]
    for pattern, compression in pieces:
        tar = tar_layer(_read_root(debian.tar, _place_of(re.compile(pattern))))
        layers.append(Layer(tar, compression))
    Layout(work / "oci").add_image("cut", layers, config=_config())


def _place_of(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    return lambda path: path if pattern.fullmatch(path) else None


def cut_image() -> str:
    """A part of the Debian 13 that takes a second to pull, as a pull's argument; it has no kernel.

    Raises UnavailableError where no root file system can be built.
    """
    debian = root.ensure()
    made_from = cache.key(debian.tar.parent.name, *_sources())
    path = cache.ensure("cut", made_from, lambda work: _write_cut(work, debian), saying="Packing a part of it")
    return f"oci:{path / 'oci'}:cut"


def handmade_image(missing: str) -> DemoImage:
    """The image of a few files, which needs nothing; `missing` tells why it is wanted."""
    base = cache.ensure("handmade", cache.key(*_sources()), _write_handmade, saying="Packing a hand-made OCI image")
    return replace(_seal(base, handmade.uki), missing=missing)


def demo_image() -> DemoImage:
    """The image of a Debian 13, or the hand-made one where that cannot be had."""
    try:
        return debian_image()
    except apt.UnavailableError as error:
        return handmade_image(str(error))
