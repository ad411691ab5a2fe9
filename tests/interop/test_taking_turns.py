"""composefsd and cfsctl take turns on one repository."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from interop.two_tools import IMAGES, Cfsctl, Daemon, add_images, reference, serving
from real import snapshot
from real.layers import directory, regular, tar_layer
from real.ledger import Ledger, Sweep
from real.oci_layout import Layout

from composefsd.repository import Repository
from composefsd.splitstream.writer import Writer

OPERATIONS = 150
SMALL = ("small-0", "small-1", "small-2")
NAMES = ("one", "two", "a/b%2Fc:1", "ünï%", "oci:/some where", "another", "yet/another")


@dataclass(frozen=True, slots=True)
class Both:
    """The two tools and what they pull."""

    daemon: Daemon
    cfsctl: Cfsctl
    layout: Layout

    def manifest(self, tag: str) -> str:
        return self.layout.read_image(tag).manifest.digest

    def reference(self, tag: str) -> str:
        return reference(self.layout, tag)

    def assert_sound(self, depth: str = "quick") -> None:
        """Neither finds anything wrong, and they agree on what has a name and on which images there are."""
        assert self.cfsctl.damage() == []
        assert self.daemon.damage(depth) == []
        tags = self.cfsctl.tags()
        assert self.daemon.tags() == tags
        for name in tags:
            assert self.daemon.linked(name) == self.cfsctl.linked(name)
            for which in ("manifest", "config"):
                assert self.daemon.document(name, which) == self.cfsctl.document(name, which)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The images, and some that share no layer with any other."""
    made = add_images(tmp_path_factory.mktemp("images") / "oci")
    for number, tag in enumerate(SMALL):
        file = regular("usr/file", f"of {tag}\n".encode() * 20, mtime_sec=number)
        made.add_image(tag, [tar_layer((directory("usr"), directory("boot"), directory("sysroot"), file))])
    return made


@pytest.fixture
def both(cfsctl: Path, layout: Layout, tmp_path: Path) -> Iterator[Both]:
    """An empty repository."""
    with serving(tmp_path / "both") as daemon:
        yield Both(daemon, Cfsctl(cfsctl, daemon.stage.repository), layout)


def stored(both: Both) -> tuple[dict[str, str], set[str]]:
    """Names of layers and images with what they lead to, and all objects."""
    links = snapshot.links(both.cfsctl.repository)
    lasting = {name: text for name, text in links.items() if name.startswith(("streams/oci-layer-", "images/"))}
    return lasting, set(snapshot.objects(both.cfsctl.repository))


PULLS: dict[str, Callable[[Both, str], object]] = {
    "composefsd": lambda both, tag: both.daemon.pull(both.reference(tag), tag),
    "cfsctl": lambda both, tag: both.cfsctl.say("oci", "pull", "--bootable", both.reference(tag), tag),
}


@pytest.mark.parametrize("order", [tuple(PULLS), tuple(reversed(PULLS))], ids="-then-".join)
def test_what_one_has_stored_the_other_stores_no_second_time(
    order: tuple[str, str], both: Both, ledger: Ledger
) -> None:
    first, second = (PULLS[name] for name in order)
    for tag in ("full", "rich"):
        first(both, tag)
        both.daemon.collect()
        names, objects = stored(both)
        second(both, tag)
        assert stored(both)[0] == names
        assert len(stored(both)[1] - objects) <= 2, "more than the streams of config and manifest were written anew"
        both.daemon.collect()
        assert len(stored(both)[1]) == len(objects)
        both.assert_sound()
    result = "no layer, object or image is stored a second time"
    ledger.record(f"one repository: the same images pulled by {order[0]}, then {order[1]}", "cfsctl", 2, result)


def test_each_renames_what_the_other_has_named(both: Both) -> None:
    daemon, cfsctl = both.daemon, both.cfsctl
    steps: list[Callable[[], object]] = [
        lambda: daemon.pull(both.reference("full"), "ours"),
        lambda: cfsctl.say("oci", "pull", both.reference("rich"), "theirs"),
        lambda: cfsctl.say("oci", "tag", both.manifest("full"), "theirs"),
        lambda: cfsctl.say("oci", "untag", "ours"),
        lambda: daemon.tag("theirs", "ours/again"),
        lambda: daemon.pull(both.reference("rich"), "theirs"),
        lambda: cfsctl.say("oci", "pull", "--bootable", both.reference("full"), "theirs"),
        lambda: daemon.untag("theirs"),
        lambda: cfsctl.say("gc"),
        lambda: daemon.generate("ours/again"),
        lambda: daemon.collect(),
    ]
    for step in steps:
        step()
        both.assert_sound()
    assert cfsctl.tags() == {"ours/again": both.manifest("full")}


@pytest.mark.parametrize("collector", ["composefsd", "cfsctl"])
def test_images_that_share_their_config_stay_whole_when_we_add_to_one(collector: str, both: Both) -> None:
    """cfsctl follows a manifest to its config only if that is current: all manifests must be written anew."""
    both.cfsctl.say("oci", "pull", both.reference("base"), "base")
    both.cfsctl.say("oci", "pull", both.reference("again"), "again")
    both.daemon.generate("base")
    both.assert_sound()
    assert len(both.cfsctl.linked("again")) == 2
    both.cfsctl.say("oci", "untag", "base")
    _ = both.daemon.collect() if collector == "composefsd" else both.cfsctl.say("gc")
    both.assert_sound()
    assert len(both.cfsctl.linked("again")) == 2


# A long random sequence


@dataclass(slots=True)
class Model:
    """What has to be there: manifest digests by name, and the configs whose boot image nobody may lose."""

    both: Both
    dice: random.Random
    names: dict[str, str] = field(default_factory=dict)
    boots: set[str] = field(default_factory=set)
    images: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Manifest and config digest by tag of the layout."""

    def __post_init__(self) -> None:
        for tag in (*IMAGES, *SMALL):
            image = self.both.layout.read_image(tag)
            self.images[tag] = image.manifest.digest, image.config.digest

    @property
    def live(self) -> set[str]:
        """The configs that a name leads to."""
        return {config for manifest, config in self.images.values() if manifest in self.names.values()}

    def config(self, name: str) -> str:
        return dict(self.images.values())[self.names[name]]

    def any_name(self) -> str:
        return self.dice.choice(sorted(self.names))

    def our_pull(self) -> str:
        tag, name = self.dice.choice((*IMAGES, *SMALL)), self.dice.choice(NAMES)
        self.both.daemon.pull(self.both.reference(tag), name)
        self.names[name], config = self.images[tag]
        self.boots.add(config)
        return f"composefsd pulls {tag} as {name}"

    def their_pull(self) -> str:
        """Not of `base` and `again`: cfsctl alone breaks one of them when it writes their config for the other."""
        tag, name = self.dice.choice(("full", "rich", *SMALL)), self.dice.choice(NAMES)
        bootable = self.dice.random() < 0.5
        options = ["--bootable"] if bootable else []
        self.both.cfsctl.say("oci", "pull", *options, self.both.reference(tag), name)
        self.names[name], config = self.images[tag]
        if bootable:
            self.boots.add(config)
        return f"cfsctl pulls {tag} as {name} {options}"

    def our_tag(self) -> str:
        old, new = self.any_name(), self.dice.choice(NAMES)
        self.both.daemon.tag(old, new)
        self.names[new] = self.names[old]
        return f"composefsd tags {old} {new}"

    def their_tag(self) -> str:
        old, new = self.any_name(), self.dice.choice(NAMES)
        self.both.cfsctl.say("oci", "tag", self.names[old], new)
        self.names[new] = self.names[old]
        return f"cfsctl tags {old} {new}"

    def our_untag(self) -> str:
        name = self.any_name()
        self.both.daemon.untag(name)
        del self.names[name]
        return f"composefsd untags {name}"

    def their_untag(self) -> str:
        name = self.any_name()
        self.both.cfsctl.say("oci", "untag", name)
        del self.names[name]
        return f"cfsctl untags {name}"

    def our_generate(self) -> str:
        name = self.any_name()
        self.both.daemon.generate(name)
        self.boots.add(self.config(name))
        return f"composefsd generates {name}"

    def our_removal(self) -> str:
        name = self.any_name()
        digest = self.names[name]
        gone = self.both.daemon.remove(name)
        assert set(gone) == {other for other, one in self.names.items() if one == digest}
        for other in gone:
            del self.names[other]
        self.boots &= self.live
        return f"composefsd removes {name}"

    def our_collection(self) -> str:
        self.both.daemon.collect()
        self.boots &= self.live
        assert self.both.daemon.damage("quick") == []
        return "composefsd collects"

    def their_collection(self) -> str:
        self.both.cfsctl.say("gc")
        self.boots &= self.live
        assert self.both.daemon.damage("quick") == []
        return "cfsctl collects"

    def step(self) -> str:
        """Do something at random; what it was."""
        weights = {
            self.our_pull: 4, self.their_pull: 6, self.our_tag: 3, self.their_tag: 3, self.our_untag: 3,
            self.their_untag: 3, self.our_generate: 2, self.our_removal: 1, self.our_collection: 2,
            self.their_collection: 3,
        }  # fmt: skip
        while True:
            (what,) = self.dice.choices(list(weights), list(weights.values()))
            if self.names or what in (self.our_pull, self.their_pull, self.our_collection, self.their_collection):
                return what()

    def assert_true(self) -> None:
        assert self.both.cfsctl.damage() == []
        assert self.both.cfsctl.tags() == self.names
        assert self.both.daemon.tags() == self.names
        for name in self.names:
            kinds = {kind for kind, _, _ in self.both.cfsctl.linked(name)}
            assert kinds >= ({"normative", "boot"} if self.config(name) in self.boots else {"normative"})


def test_nothing_that_has_a_name_is_harmed_by_a_long_random_sequence(
    both: Both, sweep: Sweep, ledger: Ledger
) -> None:
    model = Model(both, sweep.random("taking turns"))
    done: list[str] = []
    count = sweep.cases(OPERATIONS)
    with ExitStack() as stack:
        stack.callback(lambda: print(*done, sep="\n"))  # noqa: T201  # shown if the test fails
        for _ in range(count):
            done.append(model.step())
            model.assert_true()
        both.assert_sound()
        both.daemon.collect()
        assert b"0 removed" in both.cfsctl.say("gc")
        both.assert_sound("full")
        model.assert_true()
    ledger.record(
        "one repository: random operations of both in turn", "cfsctl", count, "all that has a name is whole"
    )


def test_a_tagged_image_survives_the_collection_after_cfsctl_has_rewritten_the_config_of_another(both: Both) -> None:
    """Both have one config, and cfsctl lets only the one that it pulls name the new stream of it."""
    for options in (("base", "base"), ("again", "again"), ("--bootable", "base", "base")):
        *flags, tag, name = options
        both.cfsctl.say("oci", "pull", *flags, both.reference(tag), name)
    both.cfsctl.say("oci", "untag", "base")
    assert "config-ref-outdated" in " ".join(both.daemon.damage())
    both.daemon.collect()
    both.assert_sound("full")
    both.cfsctl.say("gc")
    both.assert_sound("full")
    assert set(both.daemon.tags()) == {"again"}


def test_a_deployed_boot_image_survives_that_its_config_forgets_it(both: Both) -> None:
    """As happens when both pull the same image at the same moment, and cfsctl writes the config last."""
    both.daemon.pull(both.reference("os"), "os")
    boot = {digest for kind, _, digest in both.daemon.linked("os") if kind == "boot"}
    both.daemon.deploy("os")
    with Repository.open(both.cfsctl.repository) as repository:
        name = f"oci-config-{both.layout.read_image('os').config.digest}"
        stream = repository.read_stream(name)
        writer = Writer(repository.algorithm, stream.content_type)
        writer.external(stream.object_refs[0], stream.size_bytes)
        for key, digest in stream.named_refs.items():
            if not key.startswith("composefs.image.boot"):
                writer.add_reference(key, digest)
        repository.link_stream(name, repository.objects.store(writer.finish()))
    both.daemon.untag("os")
    both.cfsctl.say("gc")
    both.daemon.collect()
    assert boot <= {path.name for path in (both.cfsctl.repository / "images").iterdir()}
    assert both.cfsctl.run("fsck").returncode == 0


def test_what_cfsctl_pulls_after_our_removal_has_its_links_again(both: Both) -> None:
    """Removed, and not yet collected: cfsctl takes the config that is still there at its word."""
    for flags in ((), ("--bootable",)):
        both.daemon.pull(both.reference("rich"), "rich")
        both.daemon.remove("rich")
        both.cfsctl.say("oci", "pull", *flags, both.reference("rich"), "rich")
        assert both.daemon.damage("quick") == []
        both.cfsctl.say("oci", "untag", "rich")
        both.daemon.collect()
