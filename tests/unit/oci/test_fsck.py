"""The check of OCI images: what it says of artifacts, seals, tags and names, and what it learns for a repair."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from composefsd.digests import Algorithm, DiffId, ObjectId, OciDigest
from composefsd.erofs.format import FormatVersion
from composefsd.erofs.writer import write
from composefsd.errors import ComposefsdError, FormatError
from composefsd.oci import store
from composefsd.oci.fsck import SEAL_LABEL, Inspector, check_names, require_layer
from composefsd.oci.image_state import ImageState
from composefsd.oci.manifest import CONFIG_TYPE, MANIFEST_TYPE
from composefsd.oci.storage import config_stream, content_type, layer_stream, manifest_stream
from composefsd.repository import Metadata, Repository
from composefsd.repository.fsck import Finding, Severity
from composefsd.splitstream import ContentType, Writer
from composefsd.splitstream.format import Header, Range
from composefsd.tree.table import Stat, Tree
from composefsd.workers.serve import Call

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
BLOB_TYPE = "application/vnd.example.blob"
TAR = bytes(10240)
FILE = b"a file of an artifact " * 10
Documents = dict[str, Any]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def documents(config: Mapping[str, object], config_type: str, layers: list[tuple[str, bytes]]) -> Documents:
    text = json.dumps(config)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": config_type, "digest": digest_of(text.encode()), "size": len(text)},
            "layers": [{"mediaType": kind, "digest": digest_of(data), "size": len(data)} for kind, data in layers],
        }
    )
    return {
        "config": text,
        "config_digest": digest_of(text.encode()),
        "manifest": manifest,
        "manifest_digest": digest_of(manifest.encode()),
    }


def image(labels: Mapping[str, str] | None = None) -> Documents:
    rootfs = {"diff_ids": [digest_of(TAR)]}
    config = {"os": "linux", "architecture": "amd64", "rootfs": rootfs, "config": {"Labels": labels or {}}}
    return documents(config, CONFIG_TYPE, [(LAYER_TYPE, TAR)])


def artifact() -> Documents:
    return documents({}, "application/vnd.example.config", [(BLOB_TYPE, FILE)])


def put_layer(repository: Repository, data: bytes, *, is_tar: bool) -> bytes:
    stream = Writer(repository.algorithm, ContentType.OCI_LAYER if is_tar else ContentType.OCI_BLOB)
    if is_tar:
        stream.inline(data)
    else:
        stream.external(repository.objects.store(data), len(data))
    digest = repository.objects.store(stream.finish())
    repository.link_stream(layer_stream(DiffId.parse(digest_of(data))), digest)
    return digest


def commit(repository: Repository, told: Documents, layer: bytes, tag: str = "os") -> OciDigest:
    manifest = json.loads(told["manifest"])
    layers = {manifest["layers"][0]["digest"]: layer.hex()}
    order = {**told, "layers": layers, "tag": tag, "replace": False, "images": []}
    store.commit(Call(order, (repository.fd,), lambda event: None))
    return OciDigest.parse(told["manifest_digest"])


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository.create(tmp_path / "repository", Metadata.new(Algorithm.SHA256), insecure=True) as made:
        yield made


def inspect(repository: Repository, digest: OciDigest, *, contents: bool = True) -> tuple[list[Finding], ImageState]:
    """All findings about an image, and what is left of it."""
    inspector, findings = Inspector(repository, contents=contents, images=True), list[Finding]()
    walk = inspector.inspect(digest)

    def to_the_end() -> Iterator[Finding]:
        states.append((yield from walk))

    states = list[ImageState]()
    findings += to_the_end()
    (state,) = states
    assert ImageState.from_values(json.loads(json.dumps(state.values()))) == state
    return findings, state


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code.value for finding in findings]


def path_of(repository: Repository, digest: bytes) -> Path:
    return repository.path / "objects" / ObjectId(digest).path


def test_a_sound_image_is_whole(repository: Repository) -> None:
    digest = commit(repository, image(), put_layer(repository, TAR, is_tar=True))
    for contents in (False, True):
        findings, state = inspect(repository, digest, contents=contents)
        assert (findings, state.is_whole, state.is_artifact) == ([], True, False)


def test_a_sound_artifact_is_whole(repository: Repository) -> None:
    digest = commit(repository, artifact(), put_layer(repository, FILE, is_tar=False))
    findings, state = inspect(repository, digest)
    assert (findings, state.is_whole, state.is_artifact) == ([], True, True)


def test_a_layer_of_an_artifact_that_is_gone_is_found(repository: Repository) -> None:
    layer = put_layer(repository, FILE, is_tar=False)
    digest = commit(repository, artifact(), layer)
    path_of(repository, layer).unlink()
    findings, state = inspect(repository, digest)
    assert codes(findings) == ["artifact-layer-object-missing"]
    assert not state.layers[0].sound


def test_the_content_of_an_artifact_is_compared(repository: Repository) -> None:
    layer = put_layer(repository, FILE, is_tar=False)
    digest = commit(repository, artifact(), layer)
    other = Writer(Algorithm.SHA256, ContentType.OCI_BLOB)
    other.external(repository.objects.store(b"something else"), 14)
    stream = repository.objects.store(other.finish())
    repository.link_stream(layer_stream(DiffId.parse(digest_of(FILE))), stream)
    findings, state = inspect(repository, digest, contents=False)
    assert codes(findings) == ["layer-digest-mismatch"]  # of the two streams, one is right
    assert state.links == {layer_stream(DiffId.parse(digest_of(FILE))): layer}
    assert findings[0].facts["actual"] == digest_of(b"something else")


def test_an_artifact_that_does_not_name_its_layer_is_found(repository: Repository) -> None:
    put_layer(repository, FILE, is_tar=False)
    told = artifact()
    order = {**told, "layers": {}, "tag": None, "replace": False, "images": []}
    store.commit(Call(order, (repository.fd,), lambda event: None))
    findings, state = inspect(repository, OciDigest.parse(told["manifest_digest"]))
    assert codes(findings) == ["artifact-layer-ref-missing"]
    assert not state.is_current
    assert state.layers[0].sound


def erofs(repository: Repository) -> bytes:
    tree = Tree(repository.algorithm)
    tree.set_stat(0, Stat(0o755, 0, 0, 1, 0))
    tree.freeze()
    return b"".join(write(tree, FormatVersion.V1))


def test_a_sealed_image_needs_the_image_that_its_label_names(repository: Repository) -> None:
    sealed = repository.objects.store(erofs(repository))
    layer = put_layer(repository, TAR, is_tar=True)
    digest = commit(repository, image({SEAL_LABEL: sealed.hex()}), layer)
    assert codes(inspect(repository, digest)[0]) == ["seal-image-missing"]
    repository.link_image(sealed)
    assert codes(inspect(repository, digest)[0]) == []
    path_of(repository, sealed).unlink()
    assert codes(inspect(repository, digest)[0]) == ["seal-image-missing"]


def test_a_label_that_is_no_digest_is_a_seal_that_nothing_fits(repository: Repository) -> None:
    digest = commit(repository, image({SEAL_LABEL: "../../etc"}), put_layer(repository, TAR, is_tar=True))
    assert codes(inspect(repository, digest)[0]) == ["seal-image-missing"]


@pytest.mark.parametrize("label", ["\ud800", "\udcff" * 64])
def test_a_label_that_is_no_text_comes_out_as_text(repository: Repository, label: str) -> None:
    """JSON can write what UTF-8 cannot."""
    digest = commit(repository, image({SEAL_LABEL: label}), put_layer(repository, TAR, is_tar=True))
    (finding,) = inspect(repository, digest)[0]
    assert finding.code == "seal-image-missing"
    for text in (finding.subject, finding.message, *finding.facts.values()):
        assert text.encode().decode() == text


def test_the_target_of_a_tag_comes_out_as_text(repository: Repository) -> None:
    commit(repository, image(), put_layer(repository, TAR, is_tar=True))
    (repository.path / "streams/refs/oci/x").symlink_to(os.fsdecode(b"../../oci-manifest-\xff"))
    (finding,) = check_names(repository)
    assert finding.facts["target"] == "oci-manifest-\ufffd"


def test_a_block_that_cannot_be_read_is_a_finding(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers so for a rotten block of a file with fs-verity; the check goes on behind it."""
    layer = put_layer(repository, FILE, is_tar=False)
    digest = commit(repository, artifact(), layer)
    (content,) = repository.read_stream_object(layer).object_refs
    bad, read = path_of(repository, content).stat().st_ino, os.read

    def failing(fd: int, count: int) -> bytes:
        if os.fstat(fd).st_ino == bad:
            raise OSError(errno.EIO, "fs-verity: block differs")
        return read(fd, count)

    monkeypatch.setattr(os, "read", failing)
    findings, state = inspect(repository, digest)
    assert codes(findings) == ["layer-check-failed"]
    assert not state.layers[0].sound


def test_documents_that_cannot_be_parsed_are_found(repository: Repository) -> None:
    layer = put_layer(repository, TAR, is_tar=True)

    def put(name: str, kind: int, data: bytes, **references: bytes) -> bytes:
        stream = Writer(Algorithm.SHA256, kind)
        stream.external(repository.objects.store(data), len(data))
        for key, target in references.items():
            stream.add_reference(key, target)
        digest = repository.objects.store(stream.finish())
        repository.link_stream(name, digest)
        return digest

    bad = OciDigest.parse(digest_of(b"{"))
    put(manifest_stream(bad), ContentType.OCI_MANIFEST, b"{")
    assert codes(inspect(repository, bad)[0]) == ["manifest-parse-failed"]
    told = documents({"rootfs": 5}, CONFIG_TYPE, [(LAYER_TYPE, TAR)])
    config = OciDigest.parse(told["config_digest"])
    stream = put(config_stream(config), ContentType.OCI_CONFIG, told["config"].encode(), layer=layer)
    manifest = OciDigest.parse(told["manifest_digest"])
    references = {f"config:{config}": stream}
    put(manifest_stream(manifest), ContentType.OCI_MANIFEST, told["manifest"].encode(), **references)
    assert codes(inspect(repository, manifest)[0]) == ["config-parse-failed"]


def test_a_stream_of_two_objects_is_no_document(repository: Repository) -> None:
    digest = commit(repository, image(), put_layer(repository, TAR, is_tar=True))
    stream = Writer(Algorithm.SHA256, ContentType.OCI_MANIFEST)
    for data in (b"one", b"two"):
        stream.external(repository.objects.store(data), 3)
    repository.link_stream(manifest_stream(digest), repository.objects.store(stream.finish()))
    findings, state = inspect(repository, digest)
    assert codes(findings) == ["manifest-read-failed"]
    assert "2 objects" in findings[0].message
    assert state.manifest is None


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        (lambda root: rename(root / "streams/refs/oci/os", "@os"), "invalid-ref-name", Severity.ERROR),
        (
            lambda root: (root / "streams/refs/oci/x").symlink_to(f"../../oci-manifest-sha256:{'0' * 64}"),
            "tag-dangling",
            Severity.ERROR,
        ),
        (
            lambda root: (root / "streams/oci-config-nonsense").symlink_to("../meta.json"),
            "stream-name-invalid",
            Severity.WARNING,
        ),
    ],
)
def test_names_that_nothing_finds_are_found(
    repository: Repository, change: Callable[[Path], None], code: str, severity: Severity
) -> None:
    commit(repository, image(), put_layer(repository, TAR, is_tar=True))
    assert list(check_names(repository)) == []
    change(repository.path)
    (finding,) = check_names(repository)
    assert (finding.code.value, finding.severity) == (code, severity)


def test_an_image_that_comes_while_names_are_checked_is_no_damage(repository: Repository) -> None:
    layer = put_layer(repository, TAR, is_tar=True)
    (repository.path / "streams/oci-config-nonsense").symlink_to("../meta.json")
    findings = check_names(repository)
    assert next(findings).code == "stream-name-invalid"
    commit(repository, image(), layer)
    assert list(findings) == []


def test_a_layer_that_no_image_needs_is_warned_of_if_the_next_pull_would_be_misled(repository: Repository) -> None:
    digest = commit(repository, image(), put_layer(repository, TAR, is_tar=True))
    other = put_layer(repository, bytes(20480), is_tar=True)
    inspector = Inspector(repository, contents=True, images=False)
    assert list(inspector.inspect(digest)) == list(inspector.inspect_unused_layers()) == []
    wrong = DiffId.parse(digest_of(b"another"))
    repository.link_stream(layer_stream(wrong), other)
    (finding,) = inspector.inspect_unused_layers()
    assert (finding.code, finding.severity) == ("layer-digest-mismatch", Severity.WARNING)
    assert finding.facts["expected"] == str(wrong)


def test_a_layer_that_two_images_share_is_read_once(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = put_layer(repository, TAR, is_tar=True)
    digests = [commit(repository, image({"n": str(number)}), layer, f"t{number}") for number in range(3)]
    read, count = repository.objects.read, 0

    def counting(digest: bytes, limit: int) -> bytes:
        nonlocal count
        count += digest == layer
        return read(digest, limit)

    monkeypatch.setattr(repository.objects, "read", counting)
    inspector = Inspector(repository, contents=True, images=False)
    assert [list(inspector.inspect(digest)) for digest in digests] == [[], [], []]
    assert count == 1


def test_a_stream_is_the_layer_of_its_name_only_by_its_content(repository: Repository) -> None:
    stream = repository.read_stream_object(put_layer(repository, TAR, is_tar=True))
    require_layer(repository, layer_stream(DiffId.parse(digest_of(TAR))), stream)
    require_layer(repository, "not-of-an-image", stream)
    for name in (layer_stream(DiffId.parse(digest_of(b"another"))), "oci-layer-nonsense"):
        with pytest.raises(ComposefsdError):
            require_layer(repository, name, stream)


@pytest.mark.parametrize("start", [1 << 40, (1 << 64) - 1])
def test_a_header_that_points_beyond_the_file_is_malformed(repository: Repository, start: int) -> None:
    header = Header(Algorithm.SHA256, Range(start, (1 << 64) - 1)).serialize()
    with pytest.raises(FormatError, match="info section"):
        content_type(repository, repository.objects.store(header))
