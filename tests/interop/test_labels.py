"""Labels are those of composefs-rs: of real policies over a whole Debian, and of hostile ones, in bounded time."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final

import pytest
from interop.oci_ours import ParsedLayer, Trees, parse_tar
from interop.oci_seen import DIGESTS, DUMPS, difference
from interop.oci_theirs import Theirs
from real import policies
from real.corpus.case import Verdict
from real.harness import Harness, RefusedError
from real.layers import directory, hard_link, regular, tar_layer
from real.ledger import Ledger, Sweep
from real.oci_layout import Compression, Layer, Layout

from composefsd.boot import transform
from composefsd.boot.selabel import Policy
from composefsd.boot.transform import label
from composefsd.compiled import _labels, labels
from composefsd.digests import Algorithm
from composefsd.errors import FormatError, NotBootableError, UnsupportedError
from composefsd.oci.storage import ImageKind
from composefsd.tree import dumpfile

# Real policies

_OWN: Final = tar_layer(
    (
        directory("opt/own", xattrs={"user.kept": b"k", "security.selinux": b"stale"}),
        regular("opt/own/file", b"x" * 100, xattrs={"user.kept": b"k", "security.selinux": b"stale"}),
        hard_link("etc/own", "opt/own/file"),
        hard_link("usr/lib/own", "opt/own/file"),
        hard_link("var/log/own", "opt/own/file"),
    )
)
"""What no Debian has: labels of the host that built it, attributes, and hard links that policies tell apart."""


@pytest.fixture(scope="module", params=Algorithm, ids=lambda algorithm: algorithm.value)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cfsctl: Path) -> "System":
    """A whole Debian on both sides."""
    return System(tmp_path_factory.mktemp("system"), cfsctl, request.param)


class System:
    """A whole Debian: its layout, our layers of it, and the repositories of cfsctl, for one hash."""

    def __init__(self, folder: Path, cfsctl: Path, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.theirs = Theirs(cfsctl, folder, algorithm)
        self._layout = Layout(folder / "layout")
        self._contents: dict[bytes, bytes] = {}
        self._tar = policies.standard_system()
        self._below = [self._parsed(self._tar.read_bytes()), self._parsed(_OWN)]

    def _parsed(self, tar: bytes) -> ParsedLayer:
        return parse_tar(tar, self.algorithm, self._contents)

    def under(self, policy: policies.RealPolicy) -> tuple[Trees, str]:
        """Our trees of the system with a policy, and the reference of the same image."""
        tar, tag = policies.layer(policy), f"{policy.suite}-{policy.name}"
        self._layout.add_image(tag, [Layer(part, Compression.NONE) for part in (self._tar, _OWN, tar)])
        return self.trees(tar), f"oci:{self._layout.path}:{tag}"

    def trees(self, policy: bytes) -> Trees:
        """Our trees of the system with the layer of a policy."""
        layers = [*self._below, self._parsed(policy)]
        return Trees(layers, self.algorithm, lambda digest, _limit: self._contents[digest])


@pytest.mark.parametrize("policy", policies.POLICIES, ids=str)
def test_a_real_policy_labels_a_whole_debian_as_composefs_rs_does(
    system: System, policy: policies.RealPolicy, ledger: Ledger
) -> None:
    ours, reference = system.under(policy)
    theirs = system.theirs.look(reference, reference.rpartition(":")[2])
    assert theirs.verdict is Verdict.IMAGES, theirs.message
    dumps = {str(wanted): ours.dump(wanted) for wanted in DUMPS}
    assert not (found := difference(dumps, theirs.dumps)), found
    assert {str(wanted): ours.digest(wanted) for wanted in DIGESTS} == theirs.computed
    boot = next(dumps[str(wanted)] for wanted in DUMPS if "boot" in str(wanted))
    assert boot.count(b" security.selinux=") > boot.count(b"\n") / 2
    ledger.record(
        "a whole Debian under real SELinux policies (Debian 13's default and mls, Debian 12's default)",
        "cfsctl oci pull --bootable, compute-id, dump",
        1,
        "equal labels, and digests of V1 and V2 in either xattr mode",
    )


@pytest.mark.parametrize("policy", policies.POLICIES, ids=str)
def test_the_walk_in_python_labels_a_whole_debian_as_the_one_in_c_does(
    system: System, policy: policies.RealPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, boot = policies.layer(policy), [wanted for wanted in DUMPS if wanted.kind is ImageKind.BOOT]
    assert transform.descend is _labels.descend
    compiled = [system.trees(layer).dump(wanted) for wanted in boot]
    monkeypatch.setattr(transform, "descend", labels.descend)
    assert [system.trees(layer).dump(wanted) for wanted in boot] == compiled


# Policies made by hand, through the crate

_CONFIG: Final = b"SELINUXTYPE=p\n"
_PATHS: Final = (
    "/", "/a", "/a/a", "/a/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaX", "/a/b", "/a/ab", "/a/abab", "/b", "/b/X",
    "/x-", "/(a)", "/A", "/d", "/l", "/aab", "/a/" + "ab" * 100, "/é", "/a\\x0ab",
)  # fmt: skip


def _dump() -> bytes:
    lines = []
    for path in sorted(_PATHS):
        is_folder = path in ("/", "/a", "/b")
        lines.append(f"{path} 0 {'40755 2' if is_folder else '10644 1'} 0 0 0 0.0 - - -\n")
    return "".join(lines).encode()


_TREE: Final = _dump()


def _ours(files: dict[str, bytes]) -> bytes:
    tree = dumpfile.parse(io.BytesIO(_TREE), Algorithm.SHA256)
    tree.freeze()
    label(tree, Policy.parse(files.get))
    return b"".join(dumpfile.serialize(tree))


class Peer:
    """composefs-rs's labels of the small tree."""

    def __init__(self, harness: Harness, root: Path) -> None:
        self._harness = harness
        self._root = root
        (root / "etc/selinux/p/contexts/files").mkdir(parents=True)
        (root / "etc/selinux/config").write_bytes(_CONFIG)

    def label(self, files: dict[str, bytes]) -> tuple[int, bytes]:
        """How long it took, in nanoseconds, and the dump.  Raises RefusedError."""
        folder = self._root / "etc/selinux/p/contexts/files"
        for old in folder.iterdir():
            old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return self._harness.label(self._root, _TREE, Algorithm.SHA256)


@pytest.fixture(scope="module")
def large_harness(harness: Harness) -> Iterator[Harness]:
    """composefs-rs with the memory that some patterns take."""
    with Harness(harness.program, memory_bytes=6 << 30) as running:
        yield running


@pytest.fixture
def peer(large_harness: Harness, tmp_path: Path) -> Peer:
    """composefs-rs, with room for a policy."""
    return Peer(large_harness, tmp_path)


def _policy(*patterns: str) -> dict[str, bytes]:
    rules = "".join(f"{pattern} l{number}\n" for number, pattern in enumerate(patterns))
    return {"file_contexts": f"/.* all\n{rules}".encode()}


def _check(peer: Peer, files: dict[str, bytes]) -> bool:
    """Whether both label the tree, then alike; False if both refuse the policy."""
    try:
        _, theirs = peer.label(files)
    except RefusedError as refused:
        if refused.panicked:
            raise
        with pytest.raises((FormatError, NotBootableError, UnsupportedError)):
            _ours(files)
        return False
    assert not (found := difference({"labels": _ours(files)}, {"labels": theirs})), (files, found)
    return True


_TRAPS: Final[dict[str, dict[str, bytes]]] = {
    "the last of three files": {
        "file_contexts": b"/a one\n/a/.* one\n", "file_contexts.local": b"/a two\n/b two\n",
        "file_contexts.homedirs": b"/a/b three\n/b three\n",
    },
    "a plain path before a pattern": {"file_contexts": b"/a/b plain\n/a/.* pattern\n"},
    "no label": {"file_contexts": b"/.* all\n/a(/.*)? <<none>>\n/a/b b\n"},
    "a label in angle brackets": {"file_contexts": b"/.* <<all>>\n"},
    "letters": {"file_contexts": b"/.* all\n/.* -d d\n/.* -p p\n/a/b -- file\n"},
    "a substitution below another": {
        "file_contexts": b"/.* all\n/b(/.*)? b\n/A/.* A\n", "file_contexts.subs": b"/a /b\n/b/ab /A/x\n",
    },
    "two files with the same substitution": {
        "file_contexts": b"/.* all\n/b(/.*)? b\n/A(/.*)? A\n", "file_contexts.subs": b"/a /b\n",
        "file_contexts.subs_dist": b"/a /A\n",
    },
    "a substitution of the root": {"file_contexts": b"/ root\n/b b\n", "file_contexts.subs": b"/ /b\n"},
    "a substitution is no prefix": {"file_contexts": b"/.* all\n/b.* b\n", "file_contexts.subs": b"/aa /b\n"},
    "carriage returns and spaces of Unicode": {"file_contexts": "/a\u00a0--\u3000f\r\n/.*\u2003all\r\n".encode()},
    "comments and no more": {"file_contexts": b"# /.* all\n\n  #\n"},
    "a dot and the end of a line": {"file_contexts": b"/a.b dot\n/a(?=.b).b pcre\n"},
    "upper case": {"file_contexts": b"/.* all\n/A A\n(?i)/B low\n"},
    "a file of rules that is empty": {"file_contexts": b""},
    "no file of rules": {"file_contexts.local": b"/.* all\n"},
    "no context": {"file_contexts": b"/a\n"},
    "no context behind a letter": {"file_contexts": b"/a --\n"},
    "more than a context": {"file_contexts": b"/a b c\n"},
    "an unknown letter": {"file_contexts": b"/a -x c\n"},
    "a letter in upper case": {"file_contexts": b"/a -D c\n"},
    "not UTF-8": {"file_contexts": b"/.* all\n/\xff l\n"},
    "a comment that is not UTF-8": {"file_contexts": b"/.* all\n# \xff\n"},
    "half a substitution": {"file_contexts": b"/.* all\n", "file_contexts.subs": b"/a\n"},
    "more than a substitution": {"file_contexts": b"/.* all\n", "file_contexts.subs_dist": b"/a /b /c\n"},
}  # fmt: skip


@pytest.mark.parametrize("files", _TRAPS.values(), ids=_TRAPS)
def test_each_trap_of_a_policy_is_to_us_what_it_is_to_composefs_rs(
    peer: Peer, files: dict[str, bytes], ledger: Ledger
) -> None:
    labels = _check(peer, files)
    ledger.record("SELinux policies made by hand", "composefs-rs", 1, "equal labels" if labels else "refused by both")


# Hostile policies

_A: Final = "a" * 30
_HOSTILE: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "nested repetition": lambda: iter(
        ("/a/(a*)*b", "/a/(a|a)*b", "/a/((a+)+)+b", "/a/(a|aa)+b", "/a/(.*)*X", "/(.*.*)*")
    ),
    "counted repetition": lambda: iter(
        ("/a/(a{1000}){1000}", "/a/(a?){1000}{1000}X", "/a/(\\b|b){5}", "/a/(a{0,1000}){0,1000}X",
         "/a{1,2}{3}{4}b", "/a/(\\ba?){100000}", "/a/(\\ba?){900}b", "/a/(aX?){40}", "/a/(ab){1,60000}",
         "/(a{0}|b){0,9}{9}")
    ),
    "many quantifiers in a row": lambda: iter(("/a" + "*" * 100, "/a/a" + "+?" * 50 + "X", "/a" + "{1}" * 200)),
    "nesting as deep as may be": lambda: iter(
        ("(" * 247 + "/a" + ")" * 247, "(" * 122 + "/b|" + "a)" * 122, "(?:" * 240 + "/d" + ")" * 240 + "?" * 7)
    ),
    "nesting too deep for all but PCRE2": lambda: iter(
        ("(" * 248 + "/a" + ")" * 248, "/a" + "[" * 260 + "b" + "]" * 260, "(/a" * 130 + ")" * 130)
    ),
    "nesting too deep for all": lambda: iter(("(" * 300 + "/a" + ")" * 300,)),
    "huge alternations": lambda: iter(
        ("/a/(" + "|".join(f"a{number}" for number in range(20_000)) + "|b)", "/(" + "a|" * 30_000 + "b)")
    ),
    "many rules": lambda: (f"/a/b.*{number}" for number in range(100_000)),
    "rules that all stay alive": lambda: (f"/.*a{{{number}}}b.*" for number in range(1, 60)),
    "classes": lambda: iter(("/[^a&&[^b]&&[^c]]+", "/a/[[[[a]]]]+X", "/a/[a-z--a]+", "/[[:^alpha:]]", "/[\\d\\D]+")),
    "groups that the pattern closes": lambda: iter(
        ("/a)|(/b", "/a)(", "/a/a)(", ")|(", "x)|(?i)(/D", "/a)$|(/b", "/x)|^(/a/b", "/a/a)*(X", "(/a))|((/b)",
         "/a)\\z|(/l", "/a)(?m)$|(b", "/b)\\b.*(X", "/a)(?=/)(", "x)|(a(?=b)")
    ),
    "look-around that backtracks for ever": lambda: iter(
        (f"/a/(?=(a+)+b){_A}.*", "/a/(?!(a|aa)+b).*", "/a/(a|a)*(?<=b)", "/a/(?=((a*)*)*c).*")
    ),
    "back references that backtrack for ever": lambda: iter(("/a/(a*)*(a*)*\\2\\3b", "/a/(a+)(a+)+\\2\\3\\2b")),
    "recursion, conditions, verbs, properties": lambda: iter(
        ("/(a(?1)?b)/.*", "/a/((a)?(?(2)b|X)).*", "/a/(?>a*)(*FAIL)", "/a/(*ACCEPT)x", "/\\pL", "/a/\\X+", "/(?|a|b)",
         "/a/(?R)?b", "/a/\\Ka", "/(?#c)a", "/a/a*+X", "/a/(a)\\g{-1}*X", "\\A/\\Qa\\E", "/a/(?C)a")
    ),
    "what nobody can read": lambda: iter(("/(?<", )),
    "a class without an end": lambda: iter(("/[a", )),
    "a name twice": lambda: iter(("/(?P<n>a)(?P<n>b)", )),
}  # fmt: skip

_TIMES: Final = 20
_GRACE_SECONDS: Final = 10.0


@pytest.mark.parametrize("patterns", _HOSTILE.values(), ids=_HOSTILE)
def test_hostile_patterns_give_the_labels_of_composefs_rs_in_bounded_time(
    peer: Peer, patterns: Callable[[], Iterator[str]], ledger: Ledger
) -> None:
    files = _policy(*patterns())
    start = time.monotonic()
    labels = _check(peer, files)
    both = time.monotonic() - start
    if labels:
        nanoseconds, _ = peer.label(files)
        assert both < _GRACE_SECONDS + _TIMES * nanoseconds / 1e9
    ledger.record("hostile SELinux policies", "composefs-rs", 1, "equal labels" if labels else "refused by both")


def test_a_count_that_composefs_rs_dies_of_is_one_that_no_path_has(harness: Harness, tmp_path: Path) -> None:
    files = _policy("/a/a{4294967295}")
    with Harness(harness.program) as mortal, pytest.raises(RuntimeError, match="died"):
        Peer(mortal, tmp_path).label(files)
    assert _ours(files) == _ours(_policy("/none"))


_ALPHABET: Final = (
    *"aab/XAd-.*+?()|[]^$", "(?:", "(?=", "(?!", "(?<=", "(?i)", "(?s)", "(?m)", "(?>", ")|(", "{2}", "{1,3}", "{0}",
    "\\b", "\\B", "\\w", "\\z", "\\A", "\\1", "\\2", "[^/]", "[ab]", "(/.*)?", "*+", "\\x61", "\\.", ".*",
    "[[:alpha:]]",
)  # fmt: skip
_GENERATED: Final = 1500


def _random_pattern(chance: Random) -> str:
    start = chance.choice(("/", "/a/", "/a", ""))
    return start + "".join(chance.choice(_ALPHABET) for _ in range(chance.randint(1, 9)))


def test_random_patterns_are_to_us_what_they_are_to_composefs_rs(peer: Peer, sweep: Sweep, ledger: Ledger) -> None:
    chance, labelled, too_new = sweep.random("patterns"), 0, 0
    number = sweep.cases(_GENERATED)
    for _ in range(number):
        files = _policy(*(_random_pattern(chance) for _ in range(chance.choice((1, 1, 1, 2, 3)))))
        try:
            labelled += _check(peer, files)
        except UnsupportedError as error:
            assert "PCRE2 10." in error.message, files  # noqa: PT017  # this machine's library is older than theirs
            too_new += 1
    assert labelled > number / 5
    assert too_new < number / 50
    result = f"equal labels of {labelled:,}, the others refused by both"
    ledger.record("generated patterns of SELinux policies", "composefs-rs", number, result)
