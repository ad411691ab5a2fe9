"""Hostile splitstreams and `meta.json`, judged by composefs-rs and by us; hostile documents, judged by us alone.

What composefs-rs refuses we refuse.  What we refuse in addition is listed here with its reason.
"""

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard
from interop.hostile import mutated, told
from real import peers
from real.bounds import growth, seconds
from real.harness import Harness, RefusedError
from real.ledger import Ledger, Sweep

from composefsd.digests import Algorithm, OciDigest
from composefsd.errors import ComposefsdError
from composefsd.oci.manifest import ImageConfig, Index, Manifest, OciImage
from composefsd.repository.metadata import Metadata
from composefsd.splitstream.format import CHUNK, Header, Info, Range
from composefsd.splitstream.reader import Splitstream
from composefsd.splitstream.writer import Writer

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "splitstream" / "splitstream.json"

_SECONDS: Final = 10
_GROWTH_BYTES: Final = 256 << 20
_DIGESTS: Final = {Algorithm.SHA256: 32, Algorithm.SHA512: 64}

STRICTER_SPLITSTREAM: Final = {
    r"more inline bytes than the \d+ of the whole stream": "a stream cannot be longer than it says",
    r"more than \d+ (bytes of )?named references": "memory is bounded",
    r"damaged zstd data": "a frame has to be what it says of itself, to its end",
    r"lies outside of the file": "an empty section may lie anywhere for composefs-rs",
}
STRICTER_METADATA: Final = {
    r"more than \d+": "memory is bounded",
    r"'utf-8' codec can't decode": "JSON is UTF-8, also where nobody looks",
    r"a key stands twice": "which of two values is meant depends on the reader",
    r"'(features|erofs_formats)' is not an object": "Rust's serde takes a list for a structure",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reader made of a case: `content` to be compared, or why it was refused."""

    content: object = None
    refusal: str | None = None


def ours(read: Callable[[bytes], object], case: bytes) -> Verdict:
    """Anything but an error of ours fails the test, and shows the case."""
    try:
        with seconds(_SECONDS):
            return Verdict(read(case))
    except ComposefsdError as error:
        return Verdict(refusal=error.message)
    except BaseException as error:
        error.add_note(f"case: {case.hex()}")
        raise


class Peer:
    """A harness that is started again when a case kills it, which counts as a refusal."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._harness = Harness(program)

    def judge(self, ask: Callable[[Harness], object]) -> Verdict:
        try:
            return Verdict(ask(self._harness))
        except RefusedError as error:
            return Verdict(refusal=str(error) or "panic")
        except RuntimeError as error:
            self.close()
            self._harness = Harness(self._program)
            return Verdict(refusal=f"died: {error}")

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._harness.__exit__(None, None, None)


@pytest.fixture
def peer() -> Iterator[Peer]:
    running = Peer(peers.harness())
    yield running
    running.close()


def compare(cases: Iterator[tuple[bytes, Verdict, Verdict]], stricter: dict[str, str]) -> Counter[str]:
    """Count agreement; fails on a case that we accept and composefs-rs refuses, or that we read otherwise."""
    counts: Counter[str] = Counter()
    for case, mine, theirs in cases:
        if theirs.refusal is not None:
            assert mine.refusal is not None, f"accepted, but composefs-rs says {theirs.refusal!r}: {case.hex()}"
            counts["refused by both"] += 1
        elif mine.refusal is not None:
            known = [reason for pattern, reason in stricter.items() if re.search(pattern, mine.refusal)]
            assert known, f"refused with {mine.refusal!r}, but composefs-rs accepts: {case.hex()}"
            counts[f"stricter: {known[0]}"] += 1
        else:
            assert mine.content == theirs.content, case.hex()
            counts["read alike"] += 1
    return counts


# Splitstreams


def _samples(chance: random.Random, algorithm: Algorithm) -> Iterator[bytes]:
    for case in json.loads(VECTORS.read_text())["cases"]:
        if case["algorithm"] == algorithm.value:
            yield bytes.fromhex(case["file_hex"])
    while True:
        writer = Writer(algorithm, chance.choice((0, 1, int.from_bytes(b"ocilayer", "little"))))
        digests = [chance.randbytes(_DIGESTS[algorithm]) for _ in range(3)]
        for _ in range(chance.randrange(8)):
            if chance.random() < 0.5:
                writer.inline(chance.randbytes(chance.choice((1, 7, 512, 5000))))
            else:
                writer.external(chance.choice(digests), chance.choice((0, 65, 1 << 33)))
        for number in range(chance.randrange(4)):
            writer.add_reference(f"{chance.choice(('config:', '', 'é'))}{number}", chance.choice(digests))
        yield writer.finish()


def _rebuilt(data: bytes, algorithm: Algorithm, chance: random.Random) -> bytes:
    """The same splitstream with a change inside of one of its sections, and sections that fit together again."""
    header = Header.parse(data)
    info = Info.parse(data[slice(*header.info)])
    sections = [data[slice(*place)] for place in (info.stream_refs, info.object_refs, info.named_refs, info.data)]
    which = chance.randrange(4)
    if which >= 2:
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(sections[which])
        changed = _with_chunk(plain, chance) if which == 3 and chance.random() < 0.5 else mutated(plain, chance)
        sections[which] = zstandard.ZstdCompressor().compress(changed)
    else:
        sections[which] = mutated(sections[which], chance)
    places, at = [], 32 + 80
    for section in sections:
        places.append(Range(at, at + len(section)))
        at += len(section)
    size = chance.choice((info.size_bytes, info.size_bytes, 1 << 40, 0))
    new = Info(places[0], places[1], places[3], places[2], info.content_type, size)
    return Header(algorithm, Range(32, 112)).serialize() + new.serialize() + b"".join(sections)


def _with_chunk(plain: bytes, chance: random.Random) -> bytes:
    """One more chunk at the end, with a number that is at the edge of something."""
    number = chance.choice((-1, -2, -(1 << 20), 0, 1, 3, 1 << 31, (1 << 63) - 1))
    return plain + CHUNK.pack(number) + chance.randbytes(chance.choice((0, 1, 2)))


def _read_splitstream(data: bytes, algorithm: Algorithm) -> list[str]:
    stream = Splitstream.parse(data, algorithm)
    lines = [f"type {stream.content_type}", f"size {stream.size_bytes}"]
    lines += [f"object {digest.hex()}" for digest in stream.object_refs]
    lines += sorted(f"name {digest.hex()} {name.encode().hex()}" for name, digest in stream.named_refs.items())
    inline = b""
    for chunk in stream.chunks():
        if isinstance(chunk, bytes):
            inline += chunk
            continue
        if inline:
            lines.append(f"inline {inline.hex()}")
        inline = b""
        lines.append(f"external {stream.object_refs[chunk].hex()}")
    return [*lines, *([f"inline {inline.hex()}"] if inline else [])]


def _merged(lines: list[str]) -> list[str]:
    """Adjacent inline chunks as one: our reader does not tell where one ends."""
    merged: list[str] = []
    for line in lines:
        if line.startswith("inline ") and merged and merged[-1].startswith("inline "):
            merged[-1] += line.removeprefix("inline ")
        else:
            merged.append(line)
    return merged


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_splitstream_that_composefs_rs_refuses_is_refused(
    algorithm: Algorithm, peer: Peer, sweep: Sweep, ledger: Ledger
) -> None:
    chance, number = sweep.random(f"splitstream {algorithm}"), sweep.cases(3000)

    def cases() -> Iterator[tuple[bytes, Verdict, Verdict]]:
        samples = _samples(chance, algorithm)
        for count in range(number):
            data = next(samples)
            if count % 5:
                data = _rebuilt(data, algorithm, chance) if chance.random() < 0.5 else mutated(data, chance)
            mine = ours(lambda case: _read_splitstream(case, algorithm), data)
            yield data, mine, peer.judge(lambda one: _merged(one.splitstream(data, algorithm)))  # noqa: B023

    with growth(_GROWTH_BYTES):
        counts = compare(cases(), STRICTER_SPLITSTREAM)
    assert counts["read alike"] > number // 10
    assert counts["refused by both"] > number // 10
    ledger.record(f"hostile splitstreams, {algorithm.value}", "composefs-rs", number, told(counts))


# meta.json

_META_VALUES: Final[tuple[object, ...]] = (
    None, True, 0, 1, 2, 3, -1, 1.0, 1 << 33, 1 << 70, "", "1", "v1_erofs", "later", "fsverity-sha256-12",
    "fsverity-sha512-12", "fsverity-sha512-16", "fsverity-sha1-12", "sha512", [], [1], ["v1_erofs"], ["later"],
    [0, 2], [2, 2], {}, {"default": 2}, {"default": 9}, {"default": 1, "extra": [2]}, {"compatible": ["x"]},
)  # fmt: skip
_META_KEYS: Final = (
    "version",
    "algorithm",
    "features",
    "erofs_formats",
    "compatible",
    "read-only-compatible",
    "other",
)


def _metadata_text(chance: random.Random, algorithm: Algorithm) -> bytes:
    document = json.loads(Metadata.new(algorithm).serialize())
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        target = chance.choice((document, document, document.get("features"), document.get("erofs_formats")))
        if not isinstance(target, dict):
            continue
        if target and chance.random() < 0.3:
            del target[chance.choice(list(target))]
        else:
            key = chance.choice((*target, *_META_KEYS, "incompatible", "default", "extra"))
            target[key] = copy.deepcopy(chance.choice(_META_VALUES))
    text = json.dumps(document, indent=chance.choice((None, 2))).encode()
    return mutated(text, chance) if chance.random() < 0.3 else text


def _read_metadata(data: bytes, algorithm: Algorithm) -> list[str]:
    found = Metadata.parse(data)
    if found.algorithm is not algorithm:
        raise ComposefsdError("another algorithm")
    access = "read" if found.unknown_read_only_features else "write"
    return [access, *(version.name for version in found.formats)]


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_meta_json_that_composefs_rs_refuses_is_refused(
    algorithm: Algorithm, peer: Peer, sweep: Sweep, ledger: Ledger
) -> None:
    chance, number = sweep.random(f"metadata {algorithm}"), sweep.cases(3000)

    def cases() -> Iterator[tuple[bytes, Verdict, Verdict]]:
        for _ in range(number):
            data = _metadata_text(chance, algorithm)
            mine = ours(lambda case: _read_metadata(case, algorithm), data)
            yield data, mine, peer.judge(lambda one: one.metadata(data, algorithm))  # noqa: B023

    counts = compare(cases(), STRICTER_METADATA)
    assert counts["read alike"] > number // 10
    assert counts["refused by both"] > number // 10
    ledger.record(f"hostile meta.json, {algorithm.value}", "composefs-rs", number, told(counts))


# Documents of OCI images

_DIGEST: Final = "sha256:" + "ab" * 32
_MANIFEST: Final[dict[str, Any]] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _DIGEST, "size": 2},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _DIGEST, "size": 7}],
    "annotations": {"org.opencontainers.image.title": "x"},
}
_CONFIG: Final[dict[str, Any]] = {
    "created": "2026-01-02T03:04:05Z",
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
    "config": {"Labels": {"a": "b"}},
    "history": [{}],
}
_INDEX: Final[dict[str, Any]] = {
    "schemaVersion": 2,
    "manifests": [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": _DIGEST,
            "size": 7,
            "platform": {"os": "linux", "architecture": "amd64"},
            "annotations": {"org.opencontainers.image.ref.name": "t"},
        }
    ],
}
_JSON_VALUES: Final[tuple[object, ...]] = (
    None, True, False, 0, 1, 2, -1, 1.5, 1e300, 1 << 63, 1 << 64, -(1 << 64), "", "x", "\0", "\ud800", "a" * 5000,
    "sha256:", "sha256:" + "AB" * 32, "sha256:" + "ab" * 31, "sha512:" + "ab" * 64, "md5:" + "ab" * 16, "../../etc",
    [], [[]], [None], ["x"], [_DIGEST] * 3, {}, {"": ""}, {"digest": _DIGEST}, [{"digest": _DIGEST}],
)  # fmt: skip


def _places(value: object) -> Iterator[tuple[Any, Any]]:
    """All containers of a document with each of their keys."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])  # type: ignore[index]  # it is a container


def _document(sample: dict[str, Any], chance: random.Random) -> bytes:
    document = json.loads(json.dumps(sample))
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        container, key = chance.choice(list(_places(document)) or [(document, "new")])
        if chance.random() < 0.2 and isinstance(container, dict):
            container.pop(key, None)
        else:
            container[key] = copy.deepcopy(chance.choice(_JSON_VALUES))
    text = json.dumps(document).encode()
    match chance.randrange(8):
        case 0:
            return mutated(text, chance)
        case 1:
            return b"[" * chance.choice((1, 2000, 200_000)) + text
        case _:
            return text


def _read_manifest(data: bytes) -> None:
    found = Manifest.parse(data, OciDigest.parse(_DIGEST))
    for blob in (found.config, *found.layers):
        assert OciDigest.parse(str(blob.digest)) == blob.digest
        assert 0 <= blob.size_bytes < 1 << 63


def _read_config(data: bytes) -> None:
    found = ImageConfig.parse(data, OciDigest.parse(_DIGEST))
    assert found.created >= 0
    with suppress(ComposefsdError):
        image = OciImage(Manifest.parse(json.dumps(_MANIFEST).encode(), OciDigest.parse(_DIGEST)), found)
        assert len(image.layers) == len(found.diff_ids)


def _read_index(data: bytes) -> None:
    for blob in Index.parse(data, "index.json").manifests:
        assert 0 <= blob.size_bytes < 1 << 63


@pytest.mark.parametrize(
    ("sample", "read"),
    [(_MANIFEST, _read_manifest), (_CONFIG, _read_config), (_INDEX, _read_index)],
    ids=["manifest", "config", "index"],
)
def test_a_document_is_read_or_refused_in_bounded_time_and_memory(
    sample: dict[str, Any],
    read: Callable[[bytes], None],
    sweep: Sweep,
    ledger: Ledger,
    request: pytest.FixtureRequest,
) -> None:
    chance, number = sweep.random(request.node.name), sweep.cases(5000)
    with growth(_GROWTH_BYTES):
        verdicts = [ours(read, _document(sample, chance)).refusal is None for _ in range(number)]
    counts = Counter("read" if verdict else "refused" for verdict in verdicts)
    assert min(counts["read"], counts["refused"]) > number // 10
    ledger.record(f"hostile documents of images: {request.node.callspec.id}", "nobody", number, told(counts))
