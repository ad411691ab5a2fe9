"""A daemon on a bus of its own, and a small image to pull."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bus import Stage
from real import handmade
from real.layers import directory, regular, tar_layer
from real.oci_layout import Compression, Layer, Layout


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A daemon for one test."""
    with Stage(tmp_path) as stage:
        yield stage


@pytest.fixture(scope="module")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A daemon for all tests of a file that leave it as it was."""
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of an image layout: `small` boots nothing, `slow` has a layer that takes a while, `other` differs."""
    path = tmp_path_factory.mktemp("oci")
    made = Layout(path)
    made.add_image("small", list(handmade.layers()))
    made.add_image("other", [tar_layer([directory("usr"), regular("usr/other", b"other\n")])])
    big = tar_layer([directory("usr"), *(regular(f"usr/{n}", b"%d" % n * 4096) for n in range(3000))])
    made.add_image("slow", [Layer(big, Compression.NONE)])
    return str(path)
