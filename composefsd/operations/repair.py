"""Repairing the repository: what a check has found is brought back from what is still there, or from its source.

A repair goes in rounds: check, mend, check again.  What the repository can mend by itself comes first, as it may be
all that was wrong; then documents and layers are fetched from where their image was pulled from, composefs images are
made again, and everything is named anew.  Nothing is removed but what dead writers left behind.  Each step ends in
one rename or link of something that is complete, so stopping anywhere leaves the repository no worse.  What became of
a finding is told by the last check alone, never by a step that believes to have been of use.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from composefsd.digests import OciDigest
from composefsd.errors import ComposefsdError, LockedError
from composefsd.oci.fsck import Code as ImageCode
from composefsd.oci.image_state import ImageState
from composefsd.oci.storage import ImageKind
from composefsd.operations.check import Code as UseCode
from composefsd.operations.check import Key, Survey, Surveyor, cut, key_of
from composefsd.operations.collect import KEEPER
from composefsd.operations.facts import load_references
from composefsd.operations.generate import generate
from composefsd.operations.host import Host
from composefsd.operations.model import BOTH_KINDS, CheckResult, Finding, GenerateRequest, Repaired
from composefsd.operations.progress import Progress, Silent, Stage
from composefsd.operations.repair_notes import Notes
from composefsd.operations.restore import Restorer
from composefsd.repository.fsck import Code
from composefsd.repository.links import Category
from composefsd.repository.objects import DIRECTORY
from composefsd.workers.pool import worker

_ROUNDS: Final = 6
_IMAGE: Final = re.compile(rf"{Category.IMAGES}/((?:[0-9a-f]{{64}}){{1,2}})")
_OBJECT: Final = re.compile(rf"{DIRECTORY}/([0-9a-f]{{2}})/([0-9a-f]{{62}}|[0-9a-f]{{126}})")

_LINKS: Final = (Code.BROKEN_SYMLINK, Code.STAT_FAILED, Code.ENTRY_NOT_AN_OBJECT, Code.IMAGE_NAME_MISMATCH)
_BAD_IMAGES: Final = (Code.IMAGE_OPEN_FAILED, Code.IMAGE_READ_FAILED, Code.IMAGE_INVALID)


async def repair(
    host: Host, *, depth: str, image: OciDigest | None, max_findings: int, progress: Progress
) -> CheckResult:
    """Check the repository, or one image, and mend what can be mended.

    The result has what was repaired, and the findings that are left.  Raises InvalidArgumentsError for a depth that
    is none, VerityRequiredError and ReadOnlyError where nothing may be written, and what `check` raises.
    """
    surveyor = Surveyor(host, depth, image, progress)
    async with host.writing():
        pass  # only to refuse what may not be written
    survey = await surveyor.look()
    seen = {key_of(one): one for one in survey.findings}
    mender = _Mender(host, progress, of_all=image is None)
    for _ in range(_ROUNDS):
        if not (survey.findings and await mender.mend(survey)) and not await mender.make_images(survey):
            break
        survey = await surveyor.look()
        seen |= {key_of(one): one for one in survey.findings}
    return _result(seen, survey, mender.notes, max_findings)


def _result(seen: dict[Key, Finding], survey: Survey, notes: Notes, most: int) -> CheckResult:
    left = {key_of(one) for one in survey.findings}
    gone = [one for key, one in seen.items() if key not in left]
    findings = [replace(one, facts={**one.facts, "unrepaired": notes.why(one)}) for one in survey.findings]
    repaired = tuple(Repaired(one.code, one.subject, notes.how(one)) for one in cut(gone, most))
    return CheckResult(cut(findings, most), survey.total, survey.objects, repaired, survey.errors)


@dataclass(slots=True)
class _Mender:
    """Mends, round by round; what has failed once is not tried again."""

    host: Host
    progress: Progress
    of_all: bool
    notes: Notes = field(default_factory=Notes)
    _tried: set[str] = field(default_factory=set)
    _bare: set[OciDigest] = field(default_factory=set)

    async def mend(self, survey: Survey) -> bool:
        """Whether anything was done that makes another check worth while."""
        swept = await self._sweep(survey.findings)
        if await self._mend_by_itself(survey):
            return True
        return await self._bring_back(survey) or swept

    async def _sweep(self, findings: Iterable[Finding]) -> bool:
        strays = [one.subject for one in findings if one.code == Code.STRAY_TEMPORARY]
        if not strays or "sweep" in self._tried:
            return False
        self._tried.add("sweep")
        self.progress.stage(Stage.SWEEP)
        try:
            async with self.host.naming, worker(KEEPER, sandboxed=False) as keeper:
                await keeper.call("sweep", {"repository": str(self.host.settings.repository)})
        except LockedError:
            self.notes.failed |= dict.fromkeys(strays, "somebody else uses the repository; it may be theirs")
            return False
        self.notes.done |= dict.fromkeys(strays, "removed")
        return True

    async def _mend_by_itself(self, survey: Survey) -> bool:
        """What needs no source: fs-verity, links to what is there, files in the place of links."""
        order = self._order(survey)
        if not any(order.values()):
            return False
        self.progress.stage(Stage.COMMIT)
        async with (
            self.host.writing() as repository,
            self.host.naming,
            worker(KEEPER, sandboxed=False) as keeper,
        ):
            answer = await keeper.call("mend", order, (repository.fd,))
        for path, how in answer["done"].items():
            self.notes.succeed(path, how)
        self.notes.failed |= answer["failed"]
        return bool(answer["done"])

    def _order(self, survey: Survey) -> dict[str, list[str] | dict[str, str]]:
        streams: dict[str, str] = {}
        for state in survey.states:
            for name, digest in state.links.items():
                streams |= dict.fromkeys(self._once(f"{Category.STREAMS}/{name}", name), digest.hex())
        seals, files, images = list[str](), list[str](), list[str]()
        for one in survey.findings:  # a file in the place of one of the streams is second choice
            linked, stored = _IMAGE.fullmatch(one.subject), _OBJECT.fullmatch(one.subject)
            if one.code == Code.OBJECT_VERITY_MISSING and stored:
                seals += self._once(one.subject, stored[1] + stored[2])
            elif one.code == Code.ENTRY_NOT_SYMLINK:
                files += self._once(one.subject, one.subject)
            elif one.code in _LINKS and linked:
                images += self._once(one.subject, linked[1])
            elif one.code == ImageCode.IMAGE_UNLINKED:
                hexes = one.facts["object"]
                images += self._once(f"{Category.IMAGES}/{hexes}", hexes)
        return {"seals": seals, "files": files, "images": images, "streams": streams}

    def _once(self, key: str, value: str) -> list[str]:
        """The value, if nothing was tried for the key so far."""
        if key in self._tried:
            return []
        self._tried.add(key)
        return [value]

    async def _bring_back(self, survey: Survey) -> bool:
        """Whatever of the OCI images is damaged, from where they came from."""
        damaged = [state for state in map(_Blame(survey.findings).blamed, survey.states) if not state.is_whole]
        fresh = [state for state in damaged if self._once(str(state.values()), "")]
        is_left = not damaged and any(one.code == ImageCode.REPAIR_UNFINISHED for one in survey.findings)
        if not fresh and not (is_left and self._once(ImageCode.REPAIR_UNFINISHED, "")):
            return False
        async with self.host.writing() as repository:
            crew = Restorer(self.host, repository, self.progress, self.notes)
            whole = [await crew.attempt(state) for state in _best_first(self.host, fresh)]
            whole += [] if self.of_all else await self._write_others(crew)
            if all(whole) and len(fresh) == len(damaged):
                await crew.end()
        self._bare |= {state.digest for state in fresh if state.config is None and not state.is_artifact}
        return True

    async def _write_others(self, crew: Restorer) -> list[bool]:
        """Images that were not looked at may have a layer in common with one that was brought back."""
        survey = await Surveyor(self.host, "quick", None, Silent()).look()
        return [await crew.attempt(state) for state in survey.states if not state.is_current]

    async def make_images(self, survey: Survey) -> bool:
        """Make the usual composefs images where the record of them was lost with the config; whether it was."""
        bare = {one.digest for one in survey.states if one.is_whole and not one.images and not one.is_artifact}
        wanted, self._bare = sorted(self._bare & bare), set()
        for digest in wanted:
            for kinds in (BOTH_KINDS, frozenset({ImageKind.NORMATIVE})):
                try:
                    await generate(self.host, digest, GenerateRequest(kinds), self.progress)
                    break
                except ComposefsdError as error:
                    self.notes.failed[str(digest)] = f"its composefs images cannot be made: {error.message}"
        return bool(wanted)


def _best_first(host: Host, states: list[ImageState]) -> list[ImageState]:
    """Images that somebody can be asked for come first: others may have their layers in common with them."""
    return sorted(states, key=lambda state: not load_references(host.settings.state, state.digest))


class _Blame:
    """Finds what the check of the repository tells about parts of images."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self._images: set[str] = set()
        self._layers: set[str] = set()
        for one in findings:
            if one.code == UseCode.LAYER_UNUSABLE:
                self._layers.add(one.facts["layer"])
            elif one.code in _BAD_IMAGES and (match := _IMAGE.fullmatch(one.subject)):
                self._images.add(match[1])

    def blamed(self, state: ImageState) -> ImageState:
        """The state, with what is known to be bad marked so."""
        layers = (replace(one, sound=one.sound and str(one.diff_id) not in self._layers) for one in state.layers)
        images = (replace(one, sound=one.sound and one.digest.hex not in self._images) for one in state.images)
        return replace(state, layers=tuple(layers), images=tuple(images))
