"""The splitstream codec against composefs-rs's files, against itself, and against hostile bytes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from composefsd import verity
from composefsd.digests import Algorithm
from composefsd.errors import FormatError, LimitExceededError
from composefsd.splitstream import ContentType, Splitstream, Writer, reader, writer
from composefsd.splitstream import format as layout
from composefsd.splitstream.format import Header, Info, Range

VECTORS = Path(__file__).parents[2] / "vectors" / "splitstream" / "splitstream.json"
CASES: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]
SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
A, B = bytes(range(32)), b"\xbb" * 32


def content_type(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


def merged(stream: Splitstream) -> list[bytes | int]:
    """The chunks, with the pieces of an inline chunk put together again."""
    chunks: list[bytes | int] = []
    for chunk in stream.chunks():
        last = chunks[-1] if chunks else 0
        if isinstance(chunk, bytes) and isinstance(last, bytes):
            chunks[-1] = last + chunk
        else:
            chunks.append(chunk)
    return chunks


def described(stream: Splitstream) -> dict[str, object]:
    """A stream in the words of the vectors."""
    refs = [digest.hex() for digest in stream.object_refs]
    chunks = merged(stream)
    return {
        "named": {name: digest.hex() for name, digest in stream.named_refs.items()},
        "objects": refs,
        "chunks": [f"external:{refs[c]}" if isinstance(c, int) else f"inline:{c.hex()}" for c in chunks],
        "stream_size": stream.size_bytes,
    }


def zstd(*parts: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    return b"".join([*map(compressor.compress, parts), compressor.flush()])


def assembled(
    *, data: bytes = b"", objects: bytes = b"", streams: bytes = b"", names: bytes = b"", size: int = 1 << 20
) -> bytes:
    """A splitstream with these sections as they are, each in its own place."""
    sections, at, ranges = [streams, objects, names or zstd(), data or zstd()], 112, []
    for section in sections:
        ranges.append(Range(at, at + len(section)))
        at += len(section)
    info = Info(ranges[0], ranges[1], ranges[3], ranges[2], ContentType.OCI_LAYER, size)
    return b"".join((Header(SHA256, Range(32, 112)).serialize(), info.serialize(), *sections))


def test_files_of_composefs_rs_are_read_as_it_reads_them() -> None:
    for case in CASES:
        algorithm = Algorithm(case["algorithm"])
        data = bytes.fromhex(case["file_hex"])
        assert verity.compute(data, algorithm).hex == case["file_fsverity"], case["name"]
        stream = Splitstream.parse(data, algorithm, content_type(case["content_type"]))
        assert described(stream) == case["expect"], case["name"]


def test_what_is_written_is_what_composefs_rs_would_have_written() -> None:
    """Up to the compressed bytes, which here are the same, too: the same library at the same level."""
    for case in CASES:
        out = Writer(Algorithm(case["algorithm"]), content_type(case["content_type"]))
        for step in case["operations"]:
            if "inline" in step:
                out.inline(bytes.fromhex(step["inline"]))
            elif "external" in step:
                out.external(bytes.fromhex(step["external"]), step["size"])
            else:
                out.add_reference(step["named"], bytes.fromhex(step["stream"]))
        stream = Splitstream.parse(out.finish(), Algorithm(case["algorithm"]))
        assert described(stream) == case["expect"], case["name"]
        assert stream.content_type == content_type(case["content_type"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=300) | st.integers(min_value=0, max_value=5), max_size=30),
    st.dictionaries(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))), st.integers(0, 5)),
    st.sampled_from(Algorithm),
)
def test_streams_survive_the_round_trip(
    steps: list[bytes | int], names: dict[str, int], algorithm: Algorithm
) -> None:
    digests = [bytes([n]) * algorithm.digest_bytes for n in range(6)]
    out = Writer(algorithm, ContentType.OCI_LAYER)
    expected: list[bytes | int] = []
    for step in steps:
        if isinstance(step, int):
            out.external(digests[step], 100)
            expected.append(digests[step][0])
        else:
            out.inline(step)
            previous = expected.pop() if expected and isinstance(expected[-1], bytes) else b""
            assert isinstance(previous, bytes)
            expected += [previous + step] if previous + step else []
    for name, number in names.items():
        out.add_reference(name, digests[number])
    stream = Splitstream.parse(out.finish(), algorithm, ContentType.OCI_LAYER)
    refs = [digest[0] for digest in stream.object_refs]
    assert [refs[c] if isinstance(c, int) else c for c in merged(stream)] == expected
    assert stream.named_refs == {name: digests[number] for name, number in names.items()}
    assert stream.size_bytes == sum(100 if isinstance(step, int) else len(step) for step in steps)


def test_large_streams_are_read_in_pieces_and_written_in_batches() -> None:
    out = Writer(SHA256, ContentType.OCI_LAYER)
    for number in range(3000):
        out.inline(b"header %6d" % number + bytes(1010))
        out.external(number.to_bytes(32, "big"), 70)
    out.inline(bytes(3 << 20))
    stream = Splitstream.parse(out.finish(), SHA256)
    chunks = list(stream.chunks())
    assert max(len(chunk) for chunk in chunks if isinstance(chunk, bytes)) <= 8 << 20
    assert [chunk for chunk in chunks if isinstance(chunk, int)] == list(range(3000))
    assert merged(stream)[-1] == bytes(3 << 20)


def test_named_references_are_sorted_by_the_bytes_of_their_names() -> None:
    out = Writer(SHA256, ContentType.OCI_CONFIG)
    for name in ("b", "\U0001f600", "\uffff", "a:b", "a"):
        out.add_reference(name, A)
    data = out.finish()
    section = Info.parse(data[32:112]).named_refs
    text = zstandard.ZstdDecompressor().decompressobj().decompress(data[section.start : section.end])
    assert text.decode() == "0:a\x000:a:b\x000:b\x000:\uffff\x000:\U0001f600\0"


def test_names_the_format_cannot_hold_are_refused_on_writing() -> None:
    out = Writer(SHA256, ContentType.OCI_CONFIG)
    for name in ("a\0b", "\udc80"):
        with pytest.raises(FormatError):
            out.add_reference(name, A)


def test_an_endless_run_of_inline_bytes_is_refused_on_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INLINE_LIMIT_BYTES", 1000)
    out = Writer(SHA256, ContentType.OCI_LAYER)
    out.inline(bytes(1000))
    with pytest.raises(LimitExceededError):
        out.inline(b"x")


def test_a_stream_of_another_kind_or_hash_is_refused() -> None:
    data = Writer(SHA256, ContentType.OCI_LAYER).finish()
    with pytest.raises(FormatError, match="holds ocilayer, not ocimanif"):
        Splitstream.parse(data, SHA256, ContentType.OCI_MANIFEST)
    with pytest.raises(FormatError, match="not 0xafe138c18c463ef1"):
        Splitstream.parse(data, SHA256, ContentType.OSTREE_COMMIT)
    with pytest.raises(FormatError, match="sha256 digests, not sha512"):
        Splitstream.parse(data, SHA512)


@pytest.mark.parametrize(("offset", "value"), [(11, 1), (14, 3), (15, 16)])
def test_another_version_hash_or_block_size_is_refused(offset: int, value: int) -> None:
    data = bytearray(Writer(SHA256, ContentType.OCI_LAYER).finish())
    data[offset] = value
    with pytest.raises(FormatError):
        Splitstream.parse(bytes(data), SHA256)


def test_flags_and_a_longer_info_section_are_ignored() -> None:
    data = bytearray(assembled(data=zstd(layout.CHUNK.pack(-3), b"abc")))
    data[12:14] = b"\xff\xff"
    info = bytes(data[32:112]) + b"from later versions"
    data[16:32] = len(data).to_bytes(8, "little") + (len(data) + len(info)).to_bytes(8, "little")
    assert merged(Splitstream.parse(bytes(data) + info, SHA256)) == [b"abc"]


@pytest.mark.parametrize("at", [16, 32, 48, 64, 80])
@pytest.mark.parametrize("place", [(5, 4), (0, 1 << 40), (1 << 63, (1 << 64) - 1)])
def test_ranges_that_leave_the_file_are_refused(at: int, place: tuple[int, int]) -> None:
    data = bytearray(assembled())
    data[at : at + 16] = b"".join(number.to_bytes(8, "little") for number in place)
    with pytest.raises(FormatError):
        Splitstream.parse(bytes(data), SHA256)


def test_a_table_that_is_not_made_of_digests_is_refused() -> None:
    with pytest.raises(FormatError, match="not made of digests"):
        Splitstream.parse(assembled(objects=b"x" * 33), SHA256)


@pytest.mark.parametrize(
    "text",
    [
        b"0:name",
        b"name\0",
        b":name\0",
        b"x:name\0",
        b"-1:name\0",
        b"+0:name\0",
        b" 0:name\0",
        b"1:name\0",
        b"0" * 30 + b":name\0",
        b"0:\xff\0",
        b"0:a\0rest",
        b"\0",
    ],
)
def test_malformed_named_references_are_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        Splitstream.parse(assembled(streams=A, names=zstd(text)), SHA256)


def test_the_last_of_equal_names_counts_and_order_does_not() -> None:
    stream = Splitstream.parse(assembled(streams=A + B, names=zstd(b"1:z\x000:a:b\x000:z\0")), SHA256)
    assert stream.named_refs == {"z": A, "a:b": A}


def test_too_many_named_references_are_refused() -> None:
    many = b"".join(b"0:%d\0" % number for number in range(reader.NAMED_REFS_LIMIT + 1))
    with pytest.raises(LimitExceededError):
        Splitstream.parse(assembled(streams=A, names=zstd(many)), SHA256)


def test_a_bomb_in_the_names_is_stopped_at_the_limit() -> None:
    bomb = zstd(*[bytes(1 << 20)] * 300)
    assert len(bomb) < 20_000
    with pytest.raises(LimitExceededError):
        Splitstream.parse(assembled(streams=A, names=bomb), SHA256)


def test_a_bomb_in_the_data_comes_out_in_small_pieces_and_stops_at_the_size_of_the_stream() -> None:
    run = layout.CHUNK.pack(-(300 << 20))
    bomb = zstd(run, *[bytes(1 << 20)] * 300)
    pieces = [len(p) for p in Splitstream.parse(assembled(data=bomb, size=1 << 30), SHA256).chunks() if p]  # type: ignore[arg-type]  # no references
    assert sum(pieces) == 300 << 20
    assert max(pieces) <= 8 << 20
    with pytest.raises(FormatError, match="more inline bytes"):
        list(Splitstream.parse(assembled(data=bomb), SHA256).chunks())


@pytest.mark.parametrize(
    "chunks",
    [b"\0\0\0", layout.CHUNK.pack(-5) + b"four", layout.CHUNK.pack(1), layout.CHUNK.pack(-(2**63)), b"\xff" * 8],
)
def test_malformed_chunks_are_refused(chunks: bytes) -> None:
    with pytest.raises(FormatError):
        list(Splitstream.parse(assembled(objects=A, data=zstd(chunks)), SHA256).chunks())


def test_damaged_zstd_data_is_refused() -> None:
    whole = zstd(layout.CHUNK.pack(-100), bytes(range(100)))
    for data in (whole[:-1], whole[:5], whole + b"junk", b"junk" * 10, whole + whole[:7]):
        stream = Splitstream.parse(assembled(data=data), SHA256)
        with pytest.raises(FormatError, match="zstd"):
            list(stream.chunks())


def test_several_frames_are_read_as_one() -> None:
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    data = zstd(layout.CHUNK.pack(-6) + b"abc") + skippable + zstd() + zstd(b"def" + layout.CHUNK.pack(0))
    assert merged(Splitstream.parse(assembled(objects=A, data=data), SHA256)) == [b"abcdef", 0]


def test_a_frame_with_a_giant_window_is_refused() -> None:
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([20 << 3])  # a window of 2^30 bytes
    stream = Splitstream.parse(assembled(data=header + b"\x01\0\0"), SHA256)
    with pytest.raises(FormatError, match="zstd"):
        list(stream.chunks())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hostile_bytes_raise_only_format_and_limit_errors(draw: st.DataObject) -> None:
    case = draw.draw(st.sampled_from(CASES))
    data = bytearray.fromhex(case["file_hex"])
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    data = data[: draw.draw(st.integers(len(data) // 2, len(data)))] + draw.draw(st.binary(max_size=8))
    with suppress(FormatError, LimitExceededError):
        list(Splitstream.parse(bytes(data), Algorithm(case["algorithm"])).chunks())


@given(st.binary(max_size=24))
def test_hostile_headers_raise_only_format_errors(tail: bytes) -> None:
    data = layout.MAGIC + b"\0" + tail  # past the magic, or nothing is tested
    with suppress(FormatError):
        assert Header.parse(data).serialize()[14:32] == data[14:32]
