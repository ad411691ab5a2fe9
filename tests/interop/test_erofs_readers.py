"""Hostile images and dumps: what composefs-rs refuses we refuse; what only we refuse is listed here with its reason.

A panic of composefs-rs is a refusal.  A failure shows the sound image, as its dump, and the least that had to be
changed in it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from hypothesis import strategies as st
from real import bounds, hostile_corpus, trees
from real.dump_mutations import LINE_EDITS, LineEdits, tampered_dump
from real.generated import for_each
from real.harness import Harness, RefusedError
from real.ledger import Ledger, Sweep
from real.mutations import EDITS, Base, Edit, tampered

from composefsd.digests import Algorithm
from composefsd.erofs import FormatVersion, check, compute_id, object_ids, read_tree, write
from composefsd.errors import ComposefsdError
from composefsd.tree import dumpfile
from composefsd.tree.table import Tree

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "erofs"
SHA256, SHA512 = Algorithm

_SECONDS: Final = 20
_GROWTH_BYTES: Final = 300 << 20
_MAX_BASE_BYTES: Final = 32 << 10
_MAX_DUMP_BYTES: Final = 6 << 10

STRICTER_READER: Final = {
    "a name that no file can have": "a name is empty, or has a slash or a NUL",
    "a directory has a name twice": "`.` or `..`",
    "bytes behind its last name": "the kernel takes the first NUL for its end, composefs-rs any",
    "an extended attribute is malformed": "of a stub, which composefs-rs does not look at",
    "a directory has two names": "a chain of such directories has more paths than can be listed",
    "a stub has two names": "it would be a file in one place and nothing in the other",
    "more names than links": "it would be a file for each name",
    "unknown layout or type": "bits of the format field that mean nothing",
    "reaches beyond the end": "a size that the image has no room for, where nobody looks for the content",
    "blocks of an inode are beyond the end": "the same",
    "content that should be in the image is not": "a symbolic link in chunks, which composefs-rs reads as a target",
    "malformed metacopy": "of what is no file, so that composefs-rs does not look at it",
    "which it does not have": "an inode in the superblock",
    "parts of the image overlap": "an image of a megabyte could keep a reader busy for days",
    "the root of an image is no directory": "composefs-rs takes it for one",
    "redirects to no object": "it would be a file with other content",
}
"""What our messages say of images that composefs-rs takes, and why we refuse them."""

STRICTER_PARSER: Final = {
    "255 are allowed": "a longer name, which no kernel lists",
    "decimal number of 63 bits": "a time that wraps to one before 1970",
    "an escape that does not exist": "`\\x+1`",
    "the root is not a directory": "it would become one",
    "a whiteout with more than one link": "so would a root that is a whiteout",
    "no octal mode": "the root as a hard link to itself, or a hard link whose mode has no type",
    "512 are allowed": "content in which composefs-rs miscounts characters of several bytes",
    "less than eleven fields": "text before the `@` of a hard link",
    "no file that was listed before": "a hard link to what a later line replaced",
}
"""The same for dumps."""


def reason(message: str, known: Mapping[str, str], context: str) -> str:
    """The part of a message that is in the list.  Fails the test if there is none."""
    found = [part for part in known if part in message]
    assert found, f"composefs-rs takes this, we say: {message}\n{context}"
    return found[0]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a reader says of an image: its objects and its tree as a dump, unless it refuses.

    refuses_objects tells whether it would not even name the objects, as it is done to collect garbage.
    """

    refusal: str
    refuses_objects: bool
    objects: set[bytes] | None = None
    tree: bytes | None = None


def ask_composefs_rs(harness: Harness, image: bytes, algorithm: Algorithm) -> Answers:
    try:
        objects = harness.objects(image, algorithm)
    except RefusedError as error:
        return Answers(str(error) or "panic", refuses_objects=True)
    try:
        harness.check(image, algorithm)
        return Answers("", refuses_objects=False, objects=objects, tree=harness.tree(image, algorithm))
    except RefusedError as error:
        return Answers(str(error) or "panic", refuses_objects=False)


def ask_ours(image: bytes, algorithm: Algorithm) -> Answers:
    """Any other exception than ours, and a case that takes long, fails the test."""
    with bounds.seconds(_SECONDS):
        try:
            check(image, algorithm)
            objects = object_ids(image, algorithm)
        except ComposefsdError as error:
            return Answers(str(error), refuses_objects=True)
        try:
            tree = b"".join(dumpfile.serialize(read_tree(image, algorithm)))
        except ComposefsdError as error:
            return Answers(str(error), refuses_objects=False)
    return Answers("", refuses_objects=False, objects=objects, tree=tree)


def sound_images(sweep: Sweep) -> list[Base]:
    """Images to tamper with: of small generated trees, in all formats."""
    bases: list[Base] = []

    def add(tree: Tree) -> None:
        for version in FormatVersion:
            image = b"".join(write(tree, version))
            if len(image) <= _MAX_BASE_BYTES and not ask_ours(image, tree.algorithm).refusal:
                bases.append(Base(image, trees.dump(tree), version, tree.algorithm))

    for_each(trees.trees(SHA256, 6) | trees.trees(SHA512, 6), sweep, 80, add)
    return sorted(bases, key=lambda base: len(base.dump))  # a failure is made smaller by going left


def describe(base: Base, edits: list[Edit]) -> str:
    return f"{base.version.label}, {base.algorithm.value}\n{base.dump.decode('ascii')}\n{base.describe(edits)}"


def summary(verdicts: Counter[str], alike: str, stricter: Counter[str]) -> str:
    listed = ", ".join(f"{number} `{part}`" for part, number in stricter.most_common())
    return (
        f"{verdicts['refused']:,} refused by both, {verdicts['taken']:,} taken by both, {alike}; "
        f"{verdicts['stricter']:,} refused by us alone: {listed or 'none'}"
    )


def test_hostile_images_are_judged_as_by_composefs_rs(harness: Harness, sweep: Sweep, ledger: Ledger) -> None:
    stricter: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()

    def compare(case: tuple[Base, list[Edit]]) -> None:
        base, edits = case
        image = tampered(base, edits)
        theirs, ours = (
            ask_composefs_rs(harness, image, base.algorithm),
            ask_ours(image, base.algorithm),
        )
        context = f"{theirs}\n{ours}\n{describe(base, edits)}"
        if theirs.refusal:
            assert ours.refusal, context
            assert ours.refuses_objects or not theirs.refuses_objects, context
            verdicts["refused"] += 1
        elif ours.refusal:
            stricter[reason(ours.refusal, STRICTER_READER, context)] += 1
            verdicts["stricter"] += 1
        else:
            assert (ours.objects, ours.tree) == (theirs.objects, theirs.tree), context
            verdicts["taken"] += 1

    with bounds.growth(_GROWTH_BYTES):
        for_each(st.tuples(st.sampled_from(sound_images(sweep)), EDITS), sweep, 5000, compare)
    assert min(verdicts["refused"], verdicts["taken"]) > sweep.cases(500), verdicts
    result = summary(verdicts, "as the same tree and objects", stricter)
    ledger.record("Hostile images, V0, V1 and V2", "composefs-rs", verdicts.total(), result)


def sound_dumps(sweep: Sweep) -> list[tuple[bytes, Algorithm]]:
    """Dumps to tamper with: the smaller vectors, and those of small generated trees."""
    dumps: list[tuple[bytes, Algorithm]] = []

    def add(tree: Tree) -> None:
        dumps.append((trees.dump(tree), tree.algorithm))

    for path in sorted(VECTORS.glob("*.dump")):
        dumps.append((path.read_bytes(), SHA512 if path.name.endswith(".sha512.dump") else SHA256))
    for_each(trees.trees(SHA256, 6), sweep, 60, add)
    fitting = (case for case in dumps if len(case[0]) <= _MAX_DUMP_BYTES)
    return sorted(fitting, key=lambda case: len(case[0]))


def test_hostile_dumps_are_judged_as_by_composefs_rs(harness: Harness, sweep: Sweep, ledger: Ledger) -> None:
    stricter: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    version = FormatVersion.V1

    def compare(case: tuple[tuple[bytes, Algorithm], LineEdits]) -> None:
        (dump, algorithm), edits = case
        text = tampered_dump(dump, edits)
        theirs = ours = refusal = ""
        try:
            theirs = harness.digest(text, version, algorithm)
        except RefusedError as error:
            refusal = str(error) or "panic"
        try:
            with bounds.seconds(_SECONDS):
                ours = compute_id(dumpfile.parse(BytesIO(text), algorithm), version).hex
        except ComposefsdError as error:
            if theirs:
                stricter[reason(str(error), STRICTER_PARSER, repr(text))] += 1
        if ours:
            assert ours == theirs, f"{algorithm.value}, {refusal}\n{text!r}"
        verdicts["taken" if ours else "stricter" if theirs else "refused"] += 1

    with bounds.growth(_GROWTH_BYTES):
        for_each(st.tuples(st.sampled_from(sound_dumps(sweep)), LINE_EDITS), sweep, 5000, compare)
    assert min(verdicts["refused"], verdicts["taken"]) > sweep.cases(500), verdicts
    result = summary(verdicts, "with the same digest", stricter)
    ledger.record("Hostile dumps, V1", "composefs-rs", verdicts.total(), result)


# The kept corpus


def test_composefs_rs_judges_the_kept_corpus_as_it_is_written_down(harness: Harness, ledger: Ledger) -> None:
    """That we refuse all of it with these messages is shown by the unit tests."""
    images, dumps = hostile_corpus.images(), hostile_corpus.dumps()
    for image in images:
        answers = ask_composefs_rs(harness, image.data, hostile_corpus.ALGORITHM)
        assert (not answers.refusal) == image.is_taken_by_composefs_rs, (image.name, answers)
    for dump in dumps:
        try:
            harness.digest(dump.data, FormatVersion.V1, hostile_corpus.ALGORITHM)
            taken = True
        except RefusedError:
            taken = False
        assert taken == dump.is_taken_by_composefs_rs, dump.name
    for entry, known in [(image, STRICTER_READER) for image in images] + [(dump, STRICTER_PARSER) for dump in dumps]:
        if entry.is_taken_by_composefs_rs:
            reason(entry.message, known, entry.name)
    taken_alone = sum(entry.is_taken_by_composefs_rs for entry in images + dumps)
    result = f"refused by both, but {taken_alone} by us alone"
    ledger.record("Hostile images and dumps, the kept corpus", "composefs-rs", len(images + dumps), result)
