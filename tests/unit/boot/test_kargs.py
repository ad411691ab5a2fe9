"""Drop-ins of kernel arguments, and how arguments of several sources are merged."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import kargs
from composefsd.boot.kargs import DropIn
from composefsd.errors import FormatError
from composefsd.tree.table import Kind

MakeImage = Callable[..., Any]
FOLDER = "/usr/lib/bootc/kargs.d"


def collected(made: Any) -> tuple[DropIn, ...]:
    return kargs.collect(made.tree, made.read)


# Drop-ins


def test_an_image_without_drop_ins_has_none(image: MakeImage) -> None:
    assert collected(image({})) == ()
    assert collected(image({FOLDER: None})) == ()


def test_drop_ins_come_in_the_order_of_their_names_and_other_files_do_not_count(image: MakeImage) -> None:
    made = image(
        {
            f"{FOLDER}/20-b.toml": b'kargs = ["b=1", "c d"]\nmatch-architectures = ["x86_64", "aarch64"]\n',
            f"{FOLDER}/10-a.toml": b'# why\nkargs = ["a"]\n' + b"#" * 100,
            f"{FOLDER}/.toml": b"not looked at",
            f"{FOLDER}/30.toml.orig": b"not looked at",
        }
    )
    assert collected(made) == (
        DropIn(f"{FOLDER}/10-a.toml", ("a",)),
        DropIn(f"{FOLDER}/20-b.toml", ("b=1", "c", "d"), ("x86_64", "aarch64")),
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"kargs = [", "not valid TOML"),
        (b"\xff", "not valid TOML"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
        (b"kargs = " + b"[" * 20_000, "nested too deeply"),
        (b"", "no key 'kargs'"),
        (b'kargs = ["a"]\nmatch_architectures = []', "unknown key 'match_architectures'"),
        (b'kargs = "a"', "'kargs' is not an array of strings"),
        (b'kargs = ["a", 1]', "'kargs' is not an array of strings"),
        (b'kargs = ["a"]\nmatch-architectures = "x86_64"', "'match-architectures' is not an array of strings"),
        (b"kargs = ['a=\"b']", "open quote"),
        (b"kargs = [" + b'"a",' * 257 + b"]", "257 items"),
        (b'kargs = ["' + b"a " * 257 + b'"]', "257 kernel arguments"),
    ],
)
def test_a_broken_drop_in_says_what_is_wrong_and_gives_nothing(
    image: MakeImage, content: bytes, problem: str
) -> None:
    broken, good = collected(image({f"{FOLDER}/a.toml": content, f"{FOLDER}/b.toml": b'kargs = ["b"]'}))
    assert problem in broken.problem
    assert (broken.path, broken.arguments) == (f"{FOLDER}/a.toml", ())
    assert good == DropIn(f"{FOLDER}/b.toml", ("b",))


@pytest.mark.parametrize("thing", ["10-a.real", None, Kind.FIFO, "/dev/null"])
def test_a_drop_in_that_is_no_regular_file_is_refused(image: MakeImage, thing: object) -> None:
    (found,) = collected(image({f"{FOLDER}/10-a.toml": thing}))
    assert found == DropIn(f"{FOLDER}/10-a.toml", problem="not a regular file")


def test_a_folder_that_is_a_link_is_not_followed(image: MakeImage) -> None:
    (found,) = collected(image({"/usr/lib/bootc": "/etc"}))
    assert (found.path, found.arguments) == (FOLDER, ())
    assert "bootc is not a directory" in found.problem


@pytest.mark.parametrize("contents", [{f"{n}.toml": b"kargs = []" for n in range(101)}, {"a.toml": 64 * 1024 + 1}])
def test_too_many_or_too_large_drop_ins_are_not_read(image: MakeImage, contents: dict[str, object]) -> None:
    made = image({f"{FOLDER}/{name}": content for name, content in contents.items()})
    (found,) = collected(made)
    assert (found.path, made.reads) == (FOLDER, [])
    assert "are allowed" in found.problem


@given(st.text("kargs=[]\"' ,\n\\#-.{}0", max_size=60) | st.text(max_size=20))
def test_hostile_text_raises_nothing_but_format_error(content: str) -> None:
    for prefix in ("", 'kargs = ["', "kargs = ["):
        with suppress(FormatError):
            assert DropIn.parse("x", (prefix + content).encode(errors="surrogatepass")).problem == ""


# Architectures


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("amd64", "x86_64"), ("386", "x86"), ("arm64", "aarch64"), ("arm", "arm"), ("s390x", "s390x"),
        ("ppc64le", "powerpc64"), ("riscv64", "riscv64"), ("loong64", "loongarch64"),
    ],
)  # fmt: skip
def test_architectures_go_by_the_names_of_rust(architecture: str, names: str) -> None:
    found = (
        DropIn("a", ("everywhere",)),
        DropIn("b", ("here",), (names, "other")),
        DropIn("c", ("there",), ("other",)),
    )
    assert kargs.of_architecture(found, architecture) == ("everywhere", "here")


def test_an_empty_list_of_architectures_matches_none_as_in_bootc() -> None:
    assert DropIn.parse("x", b'kargs = ["a"]\nmatch-architectures = []').arguments == ()


def test_among_drop_ins_the_first_of_equal_arguments_stays_as_in_bootc() -> None:
    found = (DropIn("a", ("console=tty0", "quiet")), DropIn("b", ("console=ttyS0", "console=tty0", "quiet=1")))
    assert kargs.of_architecture(found, "amd64") == ("console=tty0", "quiet", "console=ttyS0", "quiet=1")


# Merging


def test_a_later_source_has_the_last_word_and_its_own_repetitions_stay() -> None:
    merged = kargs.merge(("console=tty0", "rw"), ("ro", "rw"), ("console=ttyS0", "console=tty0", "console=ttyS0"))
    assert merged == ("ro", "rw", "console=ttyS0", "console=tty0", "console=ttyS0")


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=5), max_size=4))
def test_merging_loses_no_argument_and_makes_none_up(sources: list[list[str]]) -> None:
    merged = kargs.merge(*sources)
    assert set(merged) == {argument for source in sources for argument in source}
    if sources:
        assert merged[len(merged) - len(sources[-1]) :] == tuple(sources[-1])
    assert kargs.merge(merged) == merged


def test_arguments_are_left_out_by_key_or_whole() -> None:
    arguments = ("quiet", "console=tty0", "console=ttyS0", "consoles=1", "quiet=1", "a=b=c")
    assert kargs.without(arguments, ("console",)) == (("quiet", "consoles=1", "quiet=1", "a=b=c"), ())
    assert kargs.without(arguments, ("console=tty0", "a=b=c"))[0] == (
        "quiet",
        "console=ttyS0",
        "consoles=1",
        "quiet=1",
    )
    assert kargs.without(arguments, ("quiet",))[0] == ("console=tty0", "console=ttyS0", "consoles=1", "a=b=c")


def test_what_could_not_be_left_out_is_told() -> None:
    assert kargs.without(("a=1",), ("a", "a=1", "a=2", "b")) == ((), ("a=2", "b"))
