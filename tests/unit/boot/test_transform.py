"""The boot image."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefsd.boot import automaton, transform
from composefsd.boot.selabel import Policy
from composefsd.boot.transform import make_boot
from composefsd.compiled import _labels, labels
from composefsd.errors import FormatError, NotBootableError
from composefsd.tree.profile import Profile
from composefsd.tree.table import REGULAR, ROOT, Kind, Stat, Tree

MakeImage = Callable[..., Any]

LABEL = b"security.selinux"
BASE = {"/usr": None, "/boot": None, "/sysroot": None}
FILES = "/etc/selinux/p/contexts/files/"


@pytest.fixture(autouse=True, params=[_labels.descend, labels.descend], ids=["C", "Python"])
def _walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is true of a walk is true of both."""
    monkeypatch.setattr(transform, "descend", request.param)


def _with_policy(rules: str, **others: str) -> dict[str, bytes]:
    files = {FILES + "file_contexts": rules.encode()}
    files |= {f"{FILES}file_contexts.{end}": text.encode() for end, text in others.items()}
    return {"/etc/selinux/config": b"SELINUXTYPE=p\n"} | files


def _labels(tree: Tree) -> dict[str, str | None]:
    """Labels by path; no path is left out."""
    paths = [(b"/", ROOT), *((path, inode) for path, _, inode in tree.walk())]
    found = {path.decode(): dict(tree.stat(inode).xattrs).get(LABEL) for path, inode in paths}
    return {path: None if label is None else label.decode() for path, label in found.items()}


def _inode(tree: Tree, path: str) -> int:
    inode = tree.find(path.encode())
    assert inode is not None
    return inode


def test_boot_and_sysroot_are_emptied_and_take_the_times_of_usr(image: MakeImage) -> None:
    stats = {"/usr": Stat(0o755, 0, 0, 11, 22), "/boot": Stat(0o700, 1, 2, 3, 4, ((b"user.a", b"b"),))}
    made = image(BASE | {"/boot/a/b": b"x", "/sysroot/ostree/x": b"y", "/usr/bin/z": b"z"}, stats=stats)
    boot = make_boot(made.tree, made.read)
    assert [path for path, _, _ in boot.walk()] == [b"/boot", b"/sysroot", b"/usr", b"/usr/bin", b"/usr/bin/z"]
    assert boot.stat(_inode(boot, "/boot")) == Stat(0o700, 1, 2, 11, 22, ((b"user.a", b"b"),))
    assert boot.stat(_inode(boot, "/sysroot")) == Stat(0o755, 0, 0, 11, 22)


@pytest.mark.parametrize("profile", [Profile.UP_TO_0_9_2, Profile.V0_7_0])
def test_up_to_0_9_2_boot_and_sysroot_keep_their_nanoseconds(image: MakeImage, profile: Profile) -> None:
    stats = {"/usr": Stat(0o755, 0, 0, 11, 22), "/boot": Stat(0o755, 0, 0, 3, 4), "/sysroot": Stat(0o755, 0, 0, 5, 6)}
    made = image(BASE, stats=stats)
    boot = make_boot(made.tree, made.read, profile=profile)
    times = {name: boot.stat(_inode(boot, name)) for name in stats}
    assert {name: (one.mtime, one.nsec) for name, one in times.items()} == {
        "/usr": (11, 22), "/boot": (11, 4), "/sysroot": (11, 6),
    }  # fmt: skip


def test_the_normative_tree_stays_as_it_is(image: MakeImage) -> None:
    contents = BASE | {"/boot/a": b"x", "/etc/one": b"1"} | _with_policy("/.* l\n/etc/two m\n")
    made = image(contents, links={"/etc/two": "/etc/one"})
    before = [(path, inode, made.tree.stat(inode)) for path, _, inode in made.tree.walk()]
    make_boot(made.tree, made.read)
    assert [(path, inode, made.tree.stat(inode)) for path, _, inode in made.tree.walk()] == before


@pytest.mark.parametrize("missing", ["/usr", "/boot", "/sysroot"])
def test_a_missing_directory_is_refused(image: MakeImage, missing: str) -> None:
    made = image({path: None for path in BASE if path != missing})
    with pytest.raises(NotBootableError, match=f"no directory {missing[1:]}"):
        make_boot(made.tree, made.read)


@pytest.mark.parametrize("odd", ["/usr", "/boot", "/sysroot"])
def test_a_symbolic_link_in_place_of_a_directory_is_refused(image: MakeImage, odd: str) -> None:
    made = image(BASE | {odd: "elsewhere"})
    with pytest.raises(NotBootableError, match="not a directory"):
        make_boot(made.tree, made.read)


def test_an_entry_that_names_a_missing_file_is_refused_unless_the_tree_is_of_a_directory(image: MakeImage) -> None:
    made = image(BASE | {"/boot/loader/entries/a.conf": b"linux /none\n"})
    with pytest.raises(NotBootableError, match="/none"):
        make_boot(made.tree, made.read)
    make_boot(made.tree, made.read, check_resources=False)


def test_without_a_policy_labels_are_removed(image: MakeImage) -> None:
    xattrs = ((b"security.capability", b"c"), (LABEL, b"build-host"), (b"user.x", b"y"))
    stats = {"/usr": Stat(0o755, 0, 0, 1, 0, xattrs), "/": Stat(0o755, 0, 0, 1, 0, ((LABEL, b"root"),))}
    made = image(BASE | {"/etc/selinux/config": b"SELINUX=disabled\n"}, stats=stats)
    boot = make_boot(made.tree, made.read)
    assert set(_labels(boot).values()) == {None}
    assert boot.stat(_inode(boot, "/usr")).xattrs == (xattrs[0], xattrs[2])


def test_a_policy_labels_everything_and_replaces_old_labels(image: MakeImage) -> None:
    old = Stat(0o755, 0, 0, 1, 0, ((LABEL, b"old"), (b"user.z", b"1")))
    rules = "/.* default\n/ -d root\n/usr(/.*)? usr\n/tmp(/.*)? <<none>>\n/dev/null -c null\n"
    contents = BASE | {"/usr/a": b"", "/tmp": None, "/tmp/x": b"", "/dev/null": Kind.CHAR, "/link": "usr"}
    made = image(contents | _with_policy(rules), stats={"/usr/a": old, "/tmp": old, "/tmp/x": old})
    boot = make_boot(made.tree, made.read)
    labels = _labels(boot)
    assert labels["/"] == "root"
    assert labels["/usr/a"] == "usr"
    assert labels["/tmp"] is labels["/tmp/x"] is None
    assert labels["/dev/null"] == "null"
    assert labels["/boot"] == labels["/link"] == "default"
    assert boot.stat(_inode(boot, "/usr/a")).xattrs == ((LABEL, b"usr"), (b"user.z", b"1"))


def test_masked_files_are_never_labelled(image: MakeImage) -> None:
    contents = BASE | {"/boot/a": b"x"} | _with_policy("/.* l\n/boot/a boot\n/etc/a etc\n")
    made = image(contents, links={"/etc/a": "/boot/a"})
    boot = make_boot(made.tree, made.read)
    assert _labels(boot)["/etc/a"] == "etc"
    assert _inode(boot, "/etc/a") == _inode(made.tree, "/etc/a")


def test_hard_links_are_split_only_where_labels_differ_and_each_name_gets_its_own_copy(image: MakeImage) -> None:
    rules = "/.* l\n/b/.* m\n/none <<none>>\n"
    made = image(
        BASE | {"/a/first": b"x"} | _with_policy(rules),
        links={
            "/a/second": "/a/first",
            "/b/1": "/a/first",
            "/b/2": "/a/first",
            "/none": "/a/first",
            "/z": "/a/first",
        },
    )
    boot = make_boot(made.tree, made.read)
    names = ("/a/first", "/a/second", "/z", "/b/1", "/b/2", "/none")
    inodes = [_inode(boot, name) for name in names]
    assert inodes[0] == inodes[1] == inodes[2]
    assert len(set(inodes)) == 4
    labels = _labels(boot)
    assert [labels[name] for name in names] == ["l", "l", "l", "m", "m", None]
    assert {boot.text(inode) for inode in inodes} == {b"x"}


def test_the_first_name_that_decides_may_have_no_label(image: MakeImage) -> None:
    made = image(BASE | {"/a": b"x"} | _with_policy("/b l\n"), links={"/b": "/a", "/c": "/a"})
    boot = make_boot(made.tree, made.read)
    assert _inode(boot, "/a") == _inode(boot, "/c") != _inode(boot, "/b")
    assert _labels(boot)["/a"] is None
    assert _labels(boot)["/b"] == "l"


def test_substitutions_are_inherited_replaced_again_and_not_prefixes(image: MakeImage) -> None:
    rules = "/.* l\n/home(/.*)? home\n/srv/x srv\n/other o\n"
    subs = "/var/home /home\n/home/moved /srv\n/var/ho /other\n/ /other\n"
    contents = BASE | {"/var/home/user/file": b"", "/var/home/moved/x": b"", "/var/homes": b"", "/var/hole": b""}
    made = image(contents | _with_policy(rules, subs=subs))
    labels = _labels(make_boot(made.tree, made.read))
    assert labels["/var/home"] == labels["/var/home/user"] == labels["/var/home/user/file"] == "home"
    assert labels["/var/home/moved"] == "l"
    assert labels["/var/home/moved/x"] == "srv"
    assert labels["/var/homes"] == labels["/var/hole"] == labels["/"] == "l"


def test_a_replaced_path_is_not_looked_up_again_for_the_same_node(image: MakeImage) -> None:
    made = image(BASE | {"/a": b""} | _with_policy("/b b\n/c c\n", subs="/a /b\n/b /c\n"))
    assert _labels(make_boot(made.tree, made.read))["/a"] == "b"


def test_superfluous_slashes_of_a_substitution_last_for_the_first_name_only(image: MakeImage) -> None:
    rules = "/.* l\n/t//a/.* m\n/t/b n\n/t// dir\n"
    made = image(BASE | {"/x/a/f": b"", "/x/b": b"", "/x/c": b""} | _with_policy(rules, subs="/x /t//\n"))
    labels = _labels(make_boot(made.tree, made.read))
    assert [labels[path] for path in ("/x", "/x/a/f", "/x/b", "/x/c")] == ["dir", "m", "n", "l"]


def test_a_substitution_may_be_relative_or_the_root(image: MakeImage) -> None:
    rules = "rel rel\nrel/a inrel\n/ root\n/b inroot\n"
    made = image(BASE | {"/x/a": b"", "/y/b": b""} | _with_policy(rules, subs="/x rel\n/y /\n"))
    labels = _labels(make_boot(made.tree, made.read))
    assert [labels[path] for path in ("/x", "/x/a", "/y", "/y/b")] == ["rel", "inrel", "root", "inroot"]


def test_rules_for_pcre2_are_asked_for_every_path(image: MakeImage) -> None:
    rules = "/.* l\n/usr(/.*)? usr\n/usr/(?!x).*y special\n"
    made = image(BASE | {"/usr/a/b/y": b"", "/usr/x/y": b""} | _with_policy(rules))
    labels = _labels(make_boot(made.tree, made.read))
    assert labels["/usr/a/b/y"] == "special"
    assert labels["/usr/x/y"] == "usr"


def test_a_deep_tree_under_a_policy_of_many_states_is_labelled_though_states_are_forgotten(
    image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automaton, "_WEIGHT_LIMIT", 2000)
    names = [f"/{'b' if at % 5 == 0 else 'a'}{at}" for at in range(150)]
    deep = ["/d" + "".join(names[:depth]) for depth in range(150)]
    made = image(BASE | {path + "/file": b"" for path in deep} | _with_policy("/.* l\n/d/(.*/)?b.{2,9}/file m\n"))
    labels = _labels(make_boot(made.tree, made.read))
    wanted = {path + "/file": "m" if re.fullmatch("/d/(.*/)?b.{2,9}/file", path + "/file") else "l" for path in deep}
    assert {path: labels[path] for path in wanted} == wanted
    assert set(wanted.values()) == {"l", "m"}


def test_a_malformed_policy_is_refused(image: MakeImage) -> None:
    made = image(BASE | _with_policy("/( l\n"))
    with pytest.raises(FormatError, match="unclosed group"):
        make_boot(made.tree, made.read)


# A second implementation of the walk, path by path


def _naive(tree: Tree, policy: Policy, aliases: dict[bytes, bytes]) -> list[tuple[bytes, bytes | None, int]]:
    """For each path its label, and the number of the inode: equal ones share it."""
    out, given, copies = [(b"/", policy.label(b"/", Kind.DIRECTORY), ROOT)], {}, iter(range(10_000, 20_000))

    def visit(directory: int, real: bytes, path: bytes) -> None:
        for entry in tree.entries(directory):
            name, inode = tree.name(entry), tree.child[entry]
            here = aliases.get(path.rstrip(b"/") + b"/" + name, path.rstrip(b"/") + b"/" + name)
            kind = Kind(tree.kind[inode])
            label = policy.label(here, kind)
            if kind != Kind.DIRECTORY and given.setdefault(inode, label) != label:
                inode = next(copies)
            out.append((real + name, label, inode))
            if kind == Kind.DIRECTORY:
                visit(inode, real + name + b"/", here)

    visit(ROOT, b"/", b"/")
    return out


NAMES = st.sampled_from(["a", "b", "ab", "usr"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
RULES = st.tuples(
    st.one_of(
        PATHS,
        PATHS.map(lambda path: path + "(/.*)?"),
        PATHS.map(lambda path: path + "/.*b"),
        st.sampled_from(["/.*", r"/.*\bb", "/(a|b|/)*a[ab/]{3}", "/(a*)*b.*", "/(?!a).*", "/a)|(/.*b"]),
    ),
    st.sampled_from(["", "", "-d ", "-- "]),
    st.sampled_from(["l", "m", "n", "<<none>>"]),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rules=st.lists(RULES, max_size=6),
    aliases=st.dictionaries(PATHS, PATHS, max_size=3),
    files=st.lists(PATHS, max_size=6, unique=True),
    links=st.dictionaries(PATHS, st.integers(0, 5), max_size=4),
    weight=st.sampled_from([0, 100, automaton._WEIGHT_LIMIT]),
)
def test_the_walk_labels_and_splits_as_a_plain_one_does(
    image: MakeImage,
    rules: list[tuple[str, str, str]],
    aliases: dict[str, str],
    files: list[str],
    links: dict[str, int],
    weight: int,
) -> None:
    files = [path for path in files if not path.startswith("/usr") and not _any_below(path, files)]
    directories = {path.rpartition("/")[0] for path in files}
    wanted = {
        path: files[at % len(files)]
        for path, at in links.items()
        if path.rpartition("/")[0] in directories and path not in {*files, *BASE} and not _any_below(path, files)
    }
    text = "".join(f"{pattern} {letter}{label}\n" for pattern, letter, label in rules)
    subs = "".join(f"{key} {path}\n" for key, path in aliases.items())
    made = image(BASE | dict.fromkeys(files, b"x") | _with_policy(text, subs=subs), links=wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automaton, "_WEIGHT_LIMIT", weight)  # states are forgotten on the way
        boot = make_boot(made.tree, made.read)
    emptied = made.tree.fork()
    policy = Policy.load(emptied, made.read)
    assert policy is not None
    expected = _naive(emptied, policy, {key.encode(): path.encode() for key, path in aliases.items()})
    found = [(b"/", ROOT), *((path, inode) for path, _, inode in boot.walk())]
    labels = [(path, dict(boot.stat(inode).xattrs).get(LABEL)) for path, inode in found]
    assert labels == [(path, label) for path, label, _ in expected]
    assert _sharing([inode for _, inode in found]) == _sharing([inode for _, _, inode in expected])


def _any_below(path: str, paths: list[str]) -> bool:
    return any(other.startswith(path + "/") for other in paths)


def _sharing(inodes: list[int]) -> list[int]:
    """Which earlier place each inode was first seen at."""
    return [inodes.index(inode) for inode in inodes]


def test_regular_kinds_share_a_letter() -> None:
    assert {Kind.INLINE, Kind.EXTERNAL, Kind.UNVERIFIED, Kind.SPARSE} == REGULAR
