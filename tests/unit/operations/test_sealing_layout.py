"""Layouts that are written whole or not at all."""

import fcntl
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from composefsd.digests import OciDigest
from composefsd.errors import (
    ComposefsdError,
    DigestMismatchError,
    FormatError,
    InvalidArgumentsError,
    LimitExceededError,
)
from composefsd.oci.manifest import MANIFEST_TYPE, Descriptor
from composefsd.oci.transport.source import Blob
from composefsd.operations.sealing.layout import StagedLayout, check_output, staging
from composefsd.tree.pack import END

TAG = "org.opencontainers.image.ref.name"


def publish(output: Path, tag: str, content: bytes = b"{}") -> Descriptor:
    check_output(output, tag)
    with staging(output) as layout:
        manifest = layout.add_document(content, MANIFEST_TYPE)
        layout.set_tag(tag, manifest)
        layout.publish(output, tag)
    return manifest


def index(output: Path) -> dict[str, str]:
    """The digests of a layout's manifests by their tags."""
    manifests = json.loads((output / "index.json").read_bytes())["manifests"]
    return {one.get("annotations", {}).get(TAG, ""): one["digest"] for one in manifests}


def left(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir() if one.name.startswith(".")]


def test_a_new_layout_appears_whole(tmp_path: Path) -> None:
    output = tmp_path / "out"
    manifest = publish(output, "os")
    assert json.loads((output / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert index(output) == {"os": str(manifest.digest)}
    assert (output / "blobs/sha256" / manifest.digest.hex).read_bytes() == b"{}"
    assert left(tmp_path) == left(output) == []
    assert output.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_image_joins_others_and_takes_the_place_of_its_own_tag(tmp_path: Path) -> None:
    output = tmp_path / "out"
    first, _ = publish(output, "a", b"1"), publish(output, "b", b"2")
    path = output / "index.json"
    document = json.loads(path.read_bytes())
    document["manifests"][0]["platform"] = {"os": "linux", "architecture": "amd64", "os.version": "1"}
    path.write_text(json.dumps(document))
    third = publish(output, "b", b"3")
    assert index(output) == {"a": str(first.digest), "b": str(third.digest)}
    assert json.loads(path.read_bytes())["manifests"][0] == document["manifests"][0]
    assert left(output) == []


def test_an_image_without_a_tag_needs_a_layout_of_its_own(tmp_path: Path) -> None:
    output = tmp_path / "out"
    publish(output, "")
    again = publish(output, "", b"again")
    assert index(output) == {"": str(again.digest)}
    publish(output, "os")
    with pytest.raises(InvalidArgumentsError, match="needs a tag"):
        check_output(output, "")


def test_what_is_no_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    (tmp_path / "link").symlink_to("folder")
    for name in ("file", "folder", "link"):
        with pytest.raises(InvalidArgumentsError, match=name):
            check_output(tmp_path / name, "os")
    (tmp_path / "empty").mkdir()
    publish(tmp_path / "empty", "os")
    (tmp_path / "folder/oci-layout").touch()
    (tmp_path / "folder/index.json").write_text('{"manifests": [5]}')
    with pytest.raises(FormatError):
        publish(tmp_path / "folder", "os")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    publish(tmp_path / "out", "os")
    before = index(tmp_path / "out")
    for output in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(LimitExceededError), staging(output) as layout:
            layout.add_document(bytes((4 << 20) + 1), MANIFEST_TYPE)
    assert index(tmp_path / "out") == before
    assert left(tmp_path) == left(tmp_path / "out") == []
    assert not (tmp_path / "new").exists()


def test_what_a_dead_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / ".composefsctl-layout-out-dead").mkdir()
    alive = tmp_path / ".composefsctl-layout-out-alive"
    alive.mkdir()
    fd = os.open(alive, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    publish(output, "os")
    assert left(tmp_path) == [alive.name]
    os.close(fd)


def test_two_writers_do_not_lose_an_image(tmp_path: Path) -> None:
    output = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path\n"
        "from composefsd.operations.sealing.layout import staging\n"
        "for tag in sys.argv[2:]:\n"
        "    with staging(Path(sys.argv[1])) as layout:\n"
        "        layout.set_tag(tag, layout.add_document(tag.encode(), 'x/y'))\n"
        "        layout.publish(Path(sys.argv[1]), tag)\n"
    )
    publish(output, "first")
    tags = [[f"{writer}-{number}" for number in range(15)] for writer in "ab"]
    writers = [subprocess.Popen([sys.executable, "-c", code, str(output), *mine]) for mine in tags]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert index(output).keys() == {"first", *tags[0], *tags[1]}
    assert left(output) == []


def test_the_slower_of_two_writers_of_a_new_layout_joins_the_other(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with staging(output) as slower:
        publish(output, "a")
        slower.set_tag("b", slower.add_document(b"b", MANIFEST_TYPE))
        slower.publish(output, "b")
    assert index(output).keys() == {"a", "b"}
    assert left(tmp_path) == left(output) == []


CRASH = """
import os, sys
from pathlib import Path
from composefsd.operations.sealing.layout import check_output, staging

output, at = Path(sys.argv[1]), int(sys.argv[2])

def hook(event, _args):
    global at
    if event in ("os.rename", "os.mkdir", "os.rmdir", "os.chmod", "open"):
        at -= 1
        if at == 0:
            os._exit(9)

sys.addaudithook(hook)
check_output(output, "new")
with staging(output) as layout:
    layout.set_tag("new", layout.add_document(b"new", "x/y"))
    layout.publish(output, "new")
os._exit(0)
"""


@pytest.mark.parametrize("before", ["nothing", "a folder", "a layout"])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_and_the_next_run_succeeds(before: str, tmp_path: Path) -> None:
    old = {} if before != "a layout" else {"old"}
    status, at = 9, 0
    while status:
        at += 1
        output = tmp_path / f"{at}"
        if before != "nothing":
            output.mkdir()
        if old:
            publish(output, "old")
        status = subprocess.run([sys.executable, "-c", CRASH, str(output), str(at)], check=False).returncode
        assert status in (0, 9)
        found = index(output).keys() if (output / "index.json").exists() else set()
        assert found in ({*old}, {*old, "new"})
        publish(output, "new", b"newer")
        assert index(output).keys() == {*old, "new"}
        assert left(tmp_path) == left(output) == []
    assert at > 10


def test_an_index_that_is_no_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    for name, make in (("folder", Path.mkdir), ("fifo", os.mkfifo)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "oci-layout").touch()
        make(tmp_path / name / "index.json")
        for tag in ("", "os"):
            with pytest.raises(FormatError, match="no regular file"):
                check_output(tmp_path / name, tag)
    with pytest.raises(ComposefsdError, match="File name too long"):
        check_output(tmp_path / ("x" * 300), "os")


def test_a_layer_is_packed_in_one_way(tmp_path: Path) -> None:
    one, other = StagedLayout(tmp_path / "a"), StagedLayout(tmp_path / "b")
    layer = one.add_layer(iter([END[:512], END[512:]]))
    assert layer == other.add_layer([END])
    with tarfile.open(one.blob_path(layer.blob.digest), "r:gz") as archive:
        assert archive.getnames() == []
    assert one.blob_path(layer.blob.digest).stat().st_size == layer.blob.size_bytes


def test_a_blob_is_copied_if_it_is_what_was_promised(tmp_path: Path) -> None:
    layout = StagedLayout(tmp_path / "a")
    (tmp_path / "blob").write_bytes(b"..{}")
    right = layout.add_document(b"{}", MANIFEST_TYPE)
    copy = StagedLayout(tmp_path / "b")

    def opened(offset: int | None) -> Blob:
        return Blob(os.open(tmp_path / "blob", os.O_RDONLY), offset)

    copy.copy_blob(right, opened(2))
    assert copy.blob_path(right.digest).read_bytes() == b"{}"
    wrong = Descriptor(MANIFEST_TYPE, OciDigest("sha512", "0" * 128), 4, {})
    with pytest.raises(DigestMismatchError):
        copy.copy_blob(wrong, opened(0))
    folder = Blob(os.open(tmp_path, os.O_RDONLY), 0)
    with pytest.raises(ComposefsdError, match=r"reading blob sha256:.*: Is a directory"):
        StagedLayout(tmp_path / "d").copy_blob(right, folder)
    with pytest.raises(FormatError, match="1 bytes early"):
        StagedLayout(tmp_path / "c").copy_blob(Descriptor(MANIFEST_TYPE, right.digest, 3, {}), opened(2))


def test_a_document_that_nobody_would_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LimitExceededError):
        StagedLayout(tmp_path / "a").add_document(bytes((4 << 20) + 1), MANIFEST_TYPE)


def test_blobs_that_are_not_needed_go(tmp_path: Path) -> None:
    layout = StagedLayout(tmp_path / "a")
    kept, gone = (layout.add_document(text, MANIFEST_TYPE).digest for text in (b"1", b"2"))
    layout.keep_only([kept])
    assert layout.blob_path(kept).exists()
    assert not layout.blob_path(gone).exists()
