"""A host in a scratch folder, and a hand-made image to pull."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from real import handmade
from real.layers import directory, regular, tar_layer
from real.oci_layout import Image, Layer, Layout

from composefsd.operations.host import Host, Settings

PE_PATH = "boot/EFI/Linux/demo.efi"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "oci")


@pytest.fixture
def make_host(tmp_path: Path) -> Callable[..., Host]:
    def make(**changes: object) -> Host:
        for name in ("esp", "sysroot"):
            (tmp_path / name).mkdir(exist_ok=True)
        settings = Settings(
            repository=tmp_path / "repository",
            sysroot=tmp_path / "sysroot",
            esp=tmp_path / "esp",
            xbootldr=None,
            state=tmp_path / "state",
            insecure=True,
        )
        return Host.open(replace(settings, **changes))  # type: ignore[arg-type]  # the tests name fields

    return make


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    return make_host()


@pytest.fixture
def add_demo(layout: Layout) -> Callable[..., Image]:
    """Adds the hand-made image, with a UKI of a command line in a last layer if there is one."""

    def add(tag: str = "os", cmdline: str | None = None) -> Image:
        layers = [Layer(tar) for tar in handmade.layers()]
        if cmdline is not None:
            folders = map(directory, ("boot/EFI", "boot/EFI/Linux"))
            layers.append(Layer(tar_layer((*folders, regular(PE_PATH, handmade.uki(cmdline))))))
        return layout.add_image(tag, layers)

    return add
