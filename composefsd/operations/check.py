"""Checking the repository: every finding is told, and none stops the check."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from composefsd.digests import OciDigest
from composefsd.errors import ComposefsdError, InvalidArgumentsError
from composefsd.oci.image_state import ImageState
from composefsd.oci.storage import StoredImage, load_image
from composefsd.operations.build import ImageOrder, build_images
from composefsd.operations.collect import KEEPER
from composefsd.operations.generate import imaging_worker, stored_layers
from composefsd.operations.host import Host
from composefsd.operations.model import CheckResult, Finding
from composefsd.operations.progress import Progress, Silent, Stage
from composefsd.repository import Repository
from composefsd.workers.pool import Event, number, worker

DEPTHS: Final = ("metadata", "quick", "full")
"""How much is looked at: links and tables; the same and the existence of every object; every object's content."""

_FINDINGS: Final = 20_000
"""How many findings are held at most; others are counted."""

_RESULT_BYTES: Final = 300_000
"""Of all findings of a result together: an answer on the bus has a bound."""


class Code(StrEnum):
    """What only shows when images are made of layers."""

    LAYER_UNUSABLE = "layer-unusable"
    IMAGE_UNUSABLE = "image-unusable"
    IMAGE_DIFFERS = "image-differs"


Key = tuple[str, str, frozenset[tuple[str, str]]]


def key_of(finding: Finding) -> Key:
    """What makes it the same finding in another check."""
    return finding.code, finding.subject, frozenset(finding.facts.items())


@dataclass(slots=True)
class Survey:
    """What one check has found, and what is left of each OCI image."""

    findings: list[Finding] = field(default_factory=list)
    total: int = 0
    errors: int = 0
    states: list[ImageState] = field(default_factory=list)
    objects: int = 0

    def result(self, max_findings: int) -> CheckResult:
        """The first findings, as many as are asked for and an answer can hold."""
        return CheckResult(cut(self.findings, max_findings), self.total, self.objects, errors_total=self.errors)


def cut(findings: Iterable[Finding], most: int) -> tuple[Finding, ...]:
    """The first findings, no more than fit into an answer."""
    kept: list[Finding] = []
    room = _RESULT_BYTES
    for one in findings:
        room -= sum(len(text.encode()) for text in (one.subject, one.message, *one.facts, *one.facts.values()))
        if len(kept) >= most or room < 0:
            break
        kept.append(one)
    return tuple(kept)


async def check(
    host: Host, *, depth: str, image: OciDigest | None, max_findings: int, progress: Progress
) -> CheckResult:
    """Check the repository, or what one image needs of it.

    The first `max_findings` findings are kept, all are told to `progress` and counted.  Raises InvalidArgumentsError
    for a depth that is none.
    """
    return (await Surveyor(host, depth, image, progress).look()).result(max_findings)


class Surveyor:
    """Looks at the repository, once or several times; tells of each finding the first time that it is made."""

    def __init__(self, host: Host, depth: str, image: OciDigest | None, progress: Progress) -> None:
        """Raises InvalidArgumentsError for a depth that is none."""
        if depth not in DEPTHS:
            raise InvalidArgumentsError(f"no depth {depth[:40]!r}; there are {', '.join(DEPTHS)}", subject=depth[:40])
        self._host = host
        self._depth = depth
        self._image = image
        self._progress = progress
        self._told: set[Key] = set()

    async def look(self) -> Survey:
        """Everything that is wrong now."""
        survey = Survey()

        def tell(event: Event) -> None:
            if "finding" in event:
                self._add(survey, Finding(*event["finding"]))
            elif "state" in event:
                survey.states.append(ImageState.from_values(event["state"]))
            else:
                self._progress.items(done=number(event, "done"), total=number(event, "total"))

        self._progress.stage(Stage.VERIFY)
        args = {
            "repository": str(self._host.settings.repository),
            "depth": self._depth,
            "image": None if self._image is None else str(self._image),
        }
        async with worker(KEEPER, sandboxed=False) as keeper:
            answer = await keeper.call("check", args, (), tell)
        survey.objects = int(answer["objects"])
        if self._depth == "full":
            await self._make_images(survey)
        return survey

    def _add(self, survey: Survey, finding: Finding) -> None:
        survey.total += 1
        survey.errors += finding.severity == "error"
        if len(survey.findings) < _FINDINGS:
            survey.findings.append(finding)
        key = key_of(finding)
        if key not in self._told and len(self._told) < _FINDINGS:
            self._told.add(key)
            self._progress.finding(finding.severity, finding.code, finding.subject, finding.message)

    async def _make_images(self, survey: Survey) -> None:
        """Have the composefs images of what looks whole made once more, and compare them with those on record.

        It shows what nothing else does: that a layer's stream is cut in another way than a tree can be made of.
        """
        whole = [state for state in survey.states if state.is_whole and not state.is_artifact]
        if not whole:
            return
        async with self._host.reading() as repository:
            for done, state in enumerate(whole):
                self._progress.items(done=done, total=len(whole))
                for finding in await _make_image(repository, state.digest):
                    self._add(survey, finding)
            self._progress.items(done=len(whole), total=len(whole))


class _Count(Silent):
    """How many layers an imager has come through."""

    layers = 0

    def items(self, *, done: int, total: int) -> None:
        self.layers = done


async def _make_image(repository: Repository, digest: OciDigest) -> list[Finding]:
    try:
        stored = load_image(repository, digest)
    except ComposefsdError:  # it was whole a moment ago, and has been removed since
        return []
    count = _Count()
    try:
        orders = [ImageOrder.of(one) for one in stored.images]
        layers = stored_layers(stored)
        async with imaging_worker(repository) as imager:
            built = await build_images(imager, repository, layers, orders, progress=count, facts=False)
    except ComposefsdError as error:
        return [_unusable(stored, count.layers, error)]
    return [
        Finding(
            "warning",
            Code.IMAGE_DIFFERS,
            str(digest),
            f"{was.reference} is on record as {was.digest}, but its layers give {now.digest}",
            {"reference": was.reference, "expected": was.digest.hex, "actual": now.digest.hex},
        )
        for was, now in zip(stored.images, built.images, strict=True)
        if was.digest != now.digest
    ]


def _unusable(stored: StoredImage, done: int, error: ComposefsdError) -> Finding:
    layers: Sequence[str] = [str(layer.diff_id) for layer in stored.content.layers]
    facts = {"image": str(stored.digest)}
    if done < len(layers):
        message = f"no tree can be made of it: {error.message}"
        return Finding("error", Code.LAYER_UNUSABLE, layers[done], message, facts | {"layer": layers[done]})
    message = f"its composefs images cannot be made: {error.message}"
    return Finding("error", Code.IMAGE_UNUSABLE, str(stored.digest), message, facts)
