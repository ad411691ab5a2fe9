"""Boot menu entries."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composefsd.boot import bls
from composefsd.boot.bls import Entry, EntryName
from composefsd.errors import FormatError, LimitExceededError

SAMPLE = b"""# a comment
title      Fedora 19 (Rawhide)
sort-key   fedora
  machine-id\t6a9857a393724b7a981ebb5b8495b9ea\r
options    root=UUID=6d3376e4 quiet
linux      /6a98/linux
initrd     /6a98/one

initrd     /6a98/two
x-unknown  kept
options    composefs=ab
"""


def test_an_entry_is_read_with_unknown_keys_and_without_comments() -> None:
    entry = Entry.parse(SAMPLE)
    assert entry.value("title") == "Fedora 19 (Rawhide)"
    assert entry.value("machine-id") == "6a9857a393724b7a981ebb5b8495b9ea"
    assert entry.values("initrd") == ("/6a98/one", "/6a98/two")
    assert entry.options == "root=UUID=6d3376e4 quiet composefs=ab"
    assert entry.value("x-unknown") == "kept"
    assert entry.value("version") is None
    assert Entry.parse(entry.serialize()) == entry


def test_serializing_aligns_the_values() -> None:
    entry = Entry((("title", "Some OS"), ("devicetree-overlay", "/a /b"), ("empty", "")))
    assert entry.serialize() == b"title      Some OS\ndevicetree-overlay /a /b\nempty\n"


FIELDS = st.tuples(
    st.from_regex(r"[a-z][-a-z]{0,14}", fullmatch=True),
    st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8"), max_size=20).map(lambda text: text.strip()),
)


@given(st.lists(FIELDS, max_size=5).map(tuple))
def test_what_is_written_is_read_back(fields: tuple[tuple[str, str], ...]) -> None:
    entry = Entry(fields)
    assert Entry.parse(entry.serialize()) == entry


@given(st.one_of(st.binary(max_size=60), st.text("a# \t\n\r\f\v\0", max_size=30).map(str.encode)))
def test_hostile_bytes_raise_nothing_but_format_error(data: bytes) -> None:
    with suppress(FormatError):
        entry = Entry.parse(data)
        assert Entry.parse(entry.serialize()) == entry


@pytest.mark.parametrize(
    "field", [("title", "a\noptions evil"), ("title", "a\r"), ("title", " a"), ("ti tle", "a"), ("#", "a"), ("", "a")]
)
def test_fields_that_would_become_others_are_refused(field: tuple[str, str]) -> None:
    with pytest.raises(FormatError):
        Entry((field,))


def test_size_is_bounded() -> None:
    with pytest.raises(LimitExceededError):
        Entry.parse(b"\n" * (bls.LIMIT_BYTES + 1))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("foo.conf", EntryName("foo")),
        ("foo+3.conf", EntryName("foo", 3)),
        ("foo+33-0.conf", EntryName("foo", 33, 0)),
        ("foo+2147483647.conf", EntryName("foo", (1 << 31) - 1)),
        ("foo+bar.conf", EntryName("foo+bar")),
        ("foo+3-.conf", EntryName("foo+3-")),
        ("a+1+2-1.efi", EntryName("a+1", 2, 1, ".efi")),
        ("FOO.CONF", EntryName("FOO", suffix=".CONF")),
        ("a.conf.conf", EntryName("a.conf")),
    ],
)
def test_counters_are_told_from_names(text: str, name: EntryName) -> None:
    assert EntryName.parse(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".conf",
        "+3.conf",
        "foo",
        "foo.txt",
        "a b.conf",
        "ä.conf",
        "a/b.conf",
        "foo+2147483648.conf",
        "a" * 251 + ".conf",
    ],
)
def test_what_is_no_name_of_an_entry_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        EntryName.parse(text)


@pytest.mark.parametrize(
    ("stem", "left", "done"),
    [("os-1+3", None, None), ("a+3-1", None, None), ("", 3, 0), ("a", None, 1), ("a", -1, 0)],
)
def test_a_stem_that_would_read_as_a_counter_is_refused(stem: str, left: int | None, done: int | None) -> None:
    with pytest.raises(FormatError):
        EntryName(stem, left, done)


def test_the_id_has_no_counters_and_no_tries_left_is_bad() -> None:
    name = EntryName.parse("composefsd-debian-000017-ab+0-3.conf")
    assert name.id == "composefsd-debian-000017-ab.conf"
    assert name.bad
    assert not EntryName.parse("a.conf").bad


@given(st.text("ab+-_.0123", max_size=20))
def test_a_name_that_is_written_is_read_back(text: str) -> None:
    with suppress(FormatError):
        name = EntryName.parse(text + ".conf")
        assert EntryName.parse(str(name)) == name


def _entry(name: str, **values: str) -> tuple[EntryName, Entry]:
    return EntryName.parse(name), Entry(tuple((key.replace("_", "-"), value) for key, value in values.items()))


def test_the_menu_has_the_order_of_systemd_boot() -> None:
    entries = [
        _entry("a-10.conf", version="10", machine_id="dd"),
        _entry("a-5.conf", version="5", machine_id="dd"),
        _entry("b.conf", version="3", machine_id="b7"),
        _entry("c.conf", sort_key="xxxx", version="5", machine_id="30"),
        _entry("cx.conf", sort_key="xxxx", version="10", machine_id="30"),
        _entry("d.conf", sort_key="kkkk", version="100", machine_id="81"),
        _entry("bad+0-3.conf", sort_key="aaaa", version="100"),
        _entry("no-machine.conf", sort_key="xxxx", version="1"),
    ]
    order = [name.id for name, _ in bls.in_menu_order(entries)]
    assert order == [
        "d.conf", "no-machine.conf", "cx.conf", "c.conf", "b.conf", "a-10.conf", "a-5.conf", "bad.conf",
    ]  # fmt: skip


# Entries of images

KERNEL = "/usr/lib/modules/6.1/vmlinuz"
INITRDS = ("/usr/lib/microcode.img", "/usr/lib/modules/6.1/initramfs.img")
NAMED = (KERNEL, *INITRDS)


def obstacles(text: str, named: tuple[str, ...] = NAMED) -> str:
    return "\n".join(bls.obstacles(bls.Entry.parse(text.encode()), named))


def entry_lines(*more: str) -> str:
    return "\n".join(["title x", f"linux {KERNEL}", *(f"initrd {path}" for path in INITRDS), *more])


def test_an_entry_with_a_kernel_and_its_initrds_can_be_written_anew() -> None:
    assert obstacles(entry_lines("options quiet", "options rw", "machine-id x", "sort-key y", "grub_users z")) == ""


@pytest.mark.parametrize("key", ["devicetree", "devicetree-overlay", "efi", "extra", "profile", "uki", "uki-url"])
def test_what_an_entry_of_ours_does_not_say_is_refused_by_name(key: str) -> None:
    assert f"(`{key}`) cannot be deployed" in obstacles(entry_lines(f"{key} /x"))


@pytest.mark.parametrize(
    ("text", "named", "reason"),
    [
        (f"linux {KERNEL}", (KERNEL,), "without an initrd"),
        ("initrd /x", ("/x",), "0 lines `linux`"),
        (f"linux {KERNEL}\nlinux {KERNEL}\ninitrd /x", (KERNEL, KERNEL, "/x"), "2 lines `linux`"),
        (f"linux {KERNEL}\ninitrd /x\n initrd /y", (KERNEL, "/x"), "read in two ways"),
        (f"linux {KERNEL} \ninitrd /x", (f"{KERNEL} ", "/x"), "read in two ways"),
    ],
)
def test_an_entry_that_does_not_name_one_kernel_and_its_initrds_clearly_is_refused(
    text: str, named: tuple[str, ...], reason: str
) -> None:
    assert reason in obstacles(text, named)
