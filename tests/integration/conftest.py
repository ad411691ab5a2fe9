"""The real image, built once and cached, and a daemon that has pulled it."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from real import apt, image, ukify
from real.sealing import make_root
from real.stage import Stage


@pytest.fixture(scope="session")
def demo_image() -> image.DemoImage:
    """The Debian 13 of the demo."""
    try:
        return image.debian_image()
    except apt.UnavailableError as error:
        pytest.skip(f"needs a Debian 13 root file system: {error}")


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder for big things, gone when the tests have ended."""
    with TemporaryDirectory(prefix="composefs-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def pulled(demo_image: image.DemoImage, scratch: Path) -> Iterator[Stage]:
    """A daemon whose repository (SHA-512) has the image as `demo`.  Not to be changed by tests."""
    folder = scratch / "pulled"
    folder.mkdir()
    with Stage(folder) as stage:
        stage.ask("pull", demo_image.reference(), "--name=demo")
        yield stage


@pytest.fixture(scope="session")
def tools() -> ukify.Tools:
    """The real ukify."""
    try:
        return ukify.ensure()
    except apt.UnavailableError as error:
        pytest.skip(f"needs ukify: {error}")


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> ukify.Key:
    """A key to sign with."""
    try:
        return ukify.make_key(tmp_path_factory.mktemp("keys"))
    except apt.UnavailableError as error:
        pytest.skip(f"needs a key: {error}")


@pytest.fixture(scope="session")
def root(tools: ukify.Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory that can be sealed; not to be changed by tests."""
    return make_root(tmp_path_factory.mktemp("sealing") / "root", tools)
