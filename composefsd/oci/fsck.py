"""Checking the OCI images of a repository: documents, references between streams, layers, recorded images.

The checks and most of the codes are those of composefs-rs's check of OCI images.  Here they are made of every
manifest, with a tag or without, and go on behind the first thing that is wrong with an image.  What was learnt comes
out as an `ImageState` as well: it is what a repair starts from.  docs/fsck.md tells for each code what it means.
"""

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from composefsd.digests import DiffId, ObjectId, OciDigest
from composefsd.document import DOCUMENT_BYTES
from composefsd.erofs import reader as erofs
from composefsd.errors import ComposefsdError, CorruptError, DigestMismatchError, FormatError, ObjectMissingError
from composefsd.oci.image_state import ImageState, LayerState, RecordedState
from composefsd.oci.manifest import (
    Artifact,
    Content,
    Layer,
    LayerForm,
    Manifest,
    OciImage,
    check_digest,
    read_content,
)
from composefsd.oci.storage import (
    CONFIG_PREFIX,
    LAYER_PREFIX,
    REPAIR_REFS,
    STREAM_BYTES,
    composefs_images,
    config_stream,
    layer_stream,
    manifest_stream,
)
from composefsd.repository import Repository, links, refs
from composefsd.repository.fsck import Finding, Severity, printable
from composefsd.repository.links import Category
from composefsd.repository.refs import MANIFEST_PREFIX
from composefsd.splitstream import Splitstream
from composefsd.splitstream.format import ContentType

SEAL_LABEL: Final = "containers.composefs.fsverity"
"""A config's label with the digest of the image that it was sealed with, as older tools write it."""

NO_FACTS: Final[Mapping[str, str]] = MappingProxyType({})

_TAGS: Final = "oci"


class Code(StrEnum):
    """What is wrong with an OCI image, in a word that a program can compare."""

    MANIFEST_READ_FAILED = "manifest-read-failed"
    MANIFEST_DIGEST_MISMATCH = "manifest-digest-mismatch"
    MANIFEST_PARSE_FAILED = "manifest-parse-failed"
    CONFIG_REF_MISSING = "config-ref-missing"
    CONFIG_READ_FAILED = "config-read-failed"
    CONFIG_DIGEST_MISMATCH = "config-digest-mismatch"
    CONFIG_PARSE_FAILED = "config-parse-failed"
    LAYER_REF_MISSING = "layer-ref-missing"
    LAYER_STREAM_MISSING = "layer-stream-missing"
    LAYER_CHECK_FAILED = "layer-check-failed"
    LAYER_OBJECT_MISSING = "layer-object-missing"
    SEAL_IMAGE_MISSING = "seal-image-missing"
    ARTIFACT_LAYER_REF_MISSING = "artifact-layer-ref-missing"
    ARTIFACT_LAYER_OBJECT_MISSING = "artifact-layer-object-missing"
    INVALID_REF_NAME = "invalid-ref-name"

    # Ours: garbage collection follows a reference only to a stream that is current, so the first four lose layers.
    CONFIG_STREAM_MISSING = "config-stream-missing"
    CONFIG_REF_OUTDATED = "config-ref-outdated"
    LAYER_REF_OUTDATED = "layer-ref-outdated"
    LAYER_DIGEST_MISMATCH = "layer-digest-mismatch"
    IMAGE_LOST = "image-lost"
    IMAGE_BROKEN = "image-broken"
    IMAGE_UNLINKED = "image-unlinked"
    TAG_DANGLING = "tag-dangling"
    STREAM_NAME_INVALID = "stream-name-invalid"
    REPAIR_UNFINISHED = "repair-unfinished"


@dataclass(frozen=True, slots=True)
class _Named:
    """A stream as two know it: the link of its name, and whoever refers to it."""

    name: str
    current: bytes | None
    named: bytes | None

    @property
    def candidates(self) -> tuple[bytes, ...]:
        """What may be the right object, the more likely one first."""
        return tuple(dict.fromkeys(one for one in (self.current, self.named) if one is not None))


Problem = tuple[Code, str, dict[str, str]]


class Inspector:
    """Looks at the images of one repository, and at no layer twice.

    With `contents` the digest of every layer is computed; with `images` recorded composefs images are read, which the
    check of the whole repository does by itself.
    """

    def __init__(self, repository: Repository, *, contents: bool, images: bool) -> None:
        self._repository = repository
        self._contents = contents
        self._images = images
        self._layers: dict[tuple[bytes, DiffId, LayerForm, int | None, bool], Problem | None] = {}

    def inspect(self, digest: OciDigest) -> Generator[Finding, None, ImageState]:
        """What is wrong with an image, and in the end what is left of it."""
        state = ImageState(digest)
        name = manifest_stream(digest)
        known = _Named(name, self._current(name), None)
        try:
            stream, data, document = self._read_document(known.current, ContentType.OCI_MANIFEST, digest)
        except ComposefsdError as error:
            yield self._document_error(error, Code.MANIFEST_DIGEST_MISMATCH, Code.MANIFEST_READ_FAILED, digest, {})
            return replace(state, is_current=False)
        try:
            manifest = Manifest.parse(data, digest)
        except ComposefsdError as error:
            yield _finding(Code.MANIFEST_PARSE_FAILED, str(digest), error.message)
            return replace(state, manifest=document)
        return (yield from self._inspect_config(replace(state, manifest=document), manifest, stream))

    def _inspect_config(
        self, state: ImageState, manifest: Manifest, stream: Splitstream
    ) -> Generator[Finding, None, ImageState]:
        digest, name = manifest.config.digest, config_stream(manifest.config.digest)
        known = _Named(name, self._current(name), stream.named_refs.get(f"config:{digest}"))
        facts = {"config": str(digest)}
        if known.named is None:
            yield _finding(Code.CONFIG_REF_MISSING, str(state.digest), "its stream does not name its config", facts)
        if known.current is None:
            message = f"there is no stream {name}"
            yield _finding(Code.CONFIG_STREAM_MISSING, str(state.digest), message, facts)
        found = yield from self._find_config(state, digest, known)
        if found is None:
            return replace(state, is_current=False)
        chosen, config, data, document = found
        if chosen != known.current:
            state.links[name] = chosen
        is_current = chosen == known.named
        if not is_current and known.named is not None:
            message = "its stream names another stream of its config than the current one"
            yield _finding(
                Code.CONFIG_REF_OUTDATED, str(state.digest), message, {"object": known.named.hex(), **facts}
            )
        try:
            content = read_content(manifest, data)
        except ComposefsdError as error:
            yield _finding(Code.CONFIG_PARSE_FAILED, str(state.digest), error.message, facts)
            return replace(state, config=document, is_current=is_current)
        state = replace(state, config=document, is_current=is_current)
        state = replace(state, is_artifact=isinstance(content, Artifact))
        return (yield from self._inspect_content(state, content, stream, config))

    def _find_config(
        self, state: ImageState, digest: OciDigest, known: _Named
    ) -> Generator[Finding, None, tuple[bytes, Splitstream, bytes, bytes] | None]:
        """The first of the streams that may be the config's which is, with its document and the object of that."""
        for candidate in known.candidates:
            try:
                stream, data, document = self._read_document(candidate, ContentType.OCI_CONFIG, digest)
            except ComposefsdError as error:
                codes = (Code.CONFIG_DIGEST_MISMATCH, Code.CONFIG_READ_FAILED)
                facts = {"config": str(digest), "stream": candidate.hex()}
                yield self._document_error(error, *codes, state.digest, facts)
                continue
            return candidate, stream, data, document
        return None

    def _inspect_content(
        self, state: ImageState, content: Content, manifest: Splitstream, config: Splitstream
    ) -> Generator[Finding, None, ImageState]:
        holder, is_artifact = (manifest, True) if isinstance(content, Artifact) else (config, False)
        layers: list[LayerState] = []
        for layer in content.layers:
            name = layer_stream(layer.diff_id)
            known = _Named(name, self._current(name), holder.named_refs.get(str(layer.diff_id)))
            if known.named is None:
                missing = Code.ARTIFACT_LAYER_REF_MISSING if is_artifact else Code.LAYER_REF_MISSING
                yield self._layer_finding((missing, "no reference leads to it", {}), state, layer)
            one = yield from self._inspect_layer(state, layer, known, is_artifact=is_artifact)
            layers.append(one)
            state = replace(state, is_current=state.is_current and one.stream == known.named)
        state = replace(state, layers=tuple(layers))
        if isinstance(content, OciImage):
            images = yield from self._inspect_images(state, config)
            state = replace(state, images=images)
            yield from self._inspect_seal(state, content)
        return state

    # Layers

    def _inspect_layer(
        self, state: ImageState, layer: Layer, known: _Named, *, is_artifact: bool
    ) -> Generator[Finding, None, LayerState]:
        """Which of the streams that may be the layer's is right; every one of them is if it is of that content.

        Two that differ are both read as a whole: one of them is wrong, or was replaced.
        """
        if known.current is None:
            yield self._layer_finding((Code.LAYER_STREAM_MISSING, f"no stream {known.name}", {}), state, layer)
        thoroughly = self._contents or known.current is None or len(known.candidates) > 1
        right = None
        for candidate in known.candidates:
            kind = None if is_artifact else ContentType.OCI_LAYER
            problem = self._layer_problem(candidate, layer, kind, thoroughly=thoroughly)
            if problem is None:
                right = candidate
                break
            if is_artifact and problem[0] is Code.LAYER_OBJECT_MISSING:
                problem = (Code.ARTIFACT_LAYER_OBJECT_MISSING, *problem[1:])
            yield self._layer_finding(problem, state, layer)
        if right is None:
            return LayerState(layer.diff_id, next(iter(known.candidates), None), sound=False)
        if right != known.current:
            state.links[known.name] = right
        if known.named not in (None, right):
            outdated: Problem = (
                Code.LAYER_REF_OUTDATED,
                "the image names another stream of it than the current one",
                {},
            )
            yield self._layer_finding(outdated, state, layer)
        return LayerState(layer.diff_id, right, sound=True)

    def inspect_unused_layers(self) -> Iterator[Finding]:
        """What is wrong with layers that no image needs; the next pull would rely on them by their names."""
        used = {key[0] for key in self._layers}
        for name in stream_names(self._repository, LAYER_PREFIX):
            try:
                diff_id = DiffId.parse(name.removeprefix(LAYER_PREFIX))
            except FormatError as error:
                yield _invalid_name(name, error)
                continue
            current = self._current(name)
            if current is None or current in used:
                continue
            problem = self._plain_problem(current, diff_id)
            if problem is not None:
                code, message, facts = problem
                message = f"no image needs it, but the next pull would rely on it: {message}"
                yield _finding(code, str(diff_id), message, {"layer": str(diff_id), **facts}, Severity.WARNING)

    def _plain_problem(self, stream: bytes, diff_id: DiffId) -> Problem | None:
        """Of a layer whose form nobody tells; it is taken for that of an image."""
        try:
            found = self._repository.read_stream_object(stream)
        except ComposefsdError as error:
            return Code.LAYER_CHECK_FAILED, error.message, {"stream": stream.hex()}
        return _layer_problem(self._repository, found, diff_id, LayerForm.TAR)

    def _layer_problem(self, stream: bytes, layer: Layer, kind: int | None, *, thoroughly: bool) -> Problem | None:
        key = (stream, layer.diff_id, layer.form, kind, thoroughly)
        if key not in self._layers:
            self._layers[key] = self._find_layer_problem(stream, layer, kind, thoroughly=thoroughly)
        return self._layers[key]

    def _find_layer_problem(
        self, stream: bytes, layer: Layer, kind: int | None, *, thoroughly: bool
    ) -> Problem | None:
        facts = {"stream": stream.hex()}
        try:
            data = self._repository.objects.read(stream, STREAM_BYTES)
            found = Splitstream.parse(data, self._repository.algorithm, kind)
        except ObjectMissingError as error:
            return Code.LAYER_OBJECT_MISSING, error.message, facts
        except ComposefsdError as error:
            return Code.LAYER_CHECK_FAILED, error.message, facts
        missing = [ref for ref in found.object_refs if not self._repository.objects.has(ref)]
        if missing:
            message = f"{len(missing)} of its objects are missing, such as {missing[0].hex()}"
            return Code.LAYER_OBJECT_MISSING, message, {"object": missing[0].hex(), **facts}
        return _layer_problem(self._repository, found, layer.diff_id, layer.form) if thoroughly else None

    def _layer_finding(self, problem: Problem, state: ImageState, layer: Layer) -> Finding:
        code, message, facts = problem
        told = {"image": str(state.digest), "layer": str(layer.diff_id), **facts}
        return _finding(code, str(layer.diff_id), message, told)

    # Composefs images

    def _inspect_images(
        self, state: ImageState, config: Splitstream
    ) -> Generator[Finding, None, tuple[RecordedState, ...]]:
        found: list[RecordedState] = []
        for image in composefs_images(config):
            code, message = self._image_problem(image.digest)
            if code is not None:
                severity = Severity.WARNING if code is Code.IMAGE_UNLINKED else Severity.ERROR
                facts = {"image": str(state.digest), "reference": image.reference, "object": image.digest.hex}
                yield _finding(code, str(image.digest), message, facts, severity)
            found.append(RecordedState(image.reference, image.digest, code in (None, Code.IMAGE_UNLINKED)))
        return tuple(found)

    def _image_problem(self, digest: ObjectId) -> tuple[Code | None, str]:
        if not self._repository.objects.has(digest.digest):
            return Code.IMAGE_LOST, "the object of a composefs image is missing"
        try:
            if self._images:
                data = self._repository.read_image(digest.digest)
                (erofs.check if self._contents else erofs.object_ids)(data, self._repository.algorithm)
        except ComposefsdError as error:
            return Code.IMAGE_BROKEN, error.message
        if not self._repository.has_image(digest.digest):
            return Code.IMAGE_UNLINKED, "a composefs image has no link in images/"
        return None, ""

    def _inspect_seal(self, state: ImageState, content: OciImage) -> Iterator[Finding]:
        label = content.config.labels.get(SEAL_LABEL)
        if label is None:
            return
        try:
            digest = ObjectId.parse(label, self._repository.algorithm)
            if not self._repository.has_image(digest.digest):
                raise ObjectMissingError("there is no such image")
            os.close(self._repository.objects.open(digest.digest))
        except ComposefsdError as error:
            message = f"the image that its label {SEAL_LABEL} names cannot be opened: {error.message}"
            yield _finding(Code.SEAL_IMAGE_MISSING, str(state.digest), message, {"expected": label[:140]})

    # Streams

    def _current(self, name: str) -> bytes | None:
        """What the link of a stream names; None if there is no link, or one that names no object."""
        try:
            return self._repository.stream(name)
        except ComposefsdError:  # the check of the repository tells about it
            return None

    def _read_document(self, stream: bytes | None, kind: int, digest: OciDigest) -> tuple[Splitstream, bytes, bytes]:
        """A stream with the JSON document that is its only object, and that object's digest."""
        if stream is None:
            raise ObjectMissingError("its stream is missing")
        found = self._repository.read_stream_object(stream, kind)
        if len(found.object_refs) != 1:
            raise CorruptError(f"its stream has {len(found.object_refs)} objects instead of one")
        data = self._repository.objects.read(found.object_refs[0], DOCUMENT_BYTES)
        check_digest(data, digest, "the document")
        return found, data, found.object_refs[0]

    def _document_error(
        self, error: ComposefsdError, mismatch: Code, other: Code, image: OciDigest, facts: Mapping[str, str]
    ) -> Finding:
        if not isinstance(error, DigestMismatchError):
            return _finding(other, str(image), error.message, facts)
        told = {name: str(error.facts[name]) for name in ("expected", "actual")}
        return _finding(mismatch, str(image), error.message, {**told, **facts})


def _layer_problem(repository: Repository, stream: Splitstream, diff_id: DiffId, form: LayerForm) -> Problem | None:
    """Read a layer as a whole and compare its digest.

    Only the packed form of some tars in artifacts has a digest, and that form is gone: they just have to be readable.
    """
    try:
        actual = _digest(repository, stream, diff_id.algorithm)
    except ObjectMissingError as error:
        return Code.LAYER_OBJECT_MISSING, error.message, {}
    except ComposefsdError as error:
        return Code.LAYER_CHECK_FAILED, error.message, {}
    is_packed = form is not LayerForm.TAR and stream.content_type == ContentType.OCI_LAYER
    if is_packed or actual == diff_id:
        return None
    facts = {"expected": str(diff_id), "actual": str(actual)}
    return Code.LAYER_DIGEST_MISMATCH, f"its content has the digest {actual}", facts


def _digest(repository: Repository, stream: Splitstream, algorithm: str) -> DiffId:
    """The digest of what a splitstream stands for."""
    content = hashlib.new(algorithm)
    for chunk in stream.chunks():
        if isinstance(chunk, bytes):
            content.update(chunk)
            continue
        for piece in repository.objects.pieces(stream.object_refs[chunk]):
            content.update(piece)
    return DiffId(algorithm, content.hexdigest())


def require_layer(repository: Repository, name: str, stream: Splitstream) -> None:
    """For a stream that somebody would call `name`: raises CorruptError or FormatError if a layer is called so, and
    it is not that layer.

    Whoever pulls an image takes a layer by its name alone.  Of a packed tar of an artifact nothing can be said, so it
    is none, either.
    """
    if name.startswith(LAYER_PREFIX):
        problem = _layer_problem(repository, stream, DiffId.parse(name.removeprefix(LAYER_PREFIX)), LayerForm.TAR)
        if problem is not None:
            raise CorruptError(f"it is not the layer that its name says: {problem[1]}", subject=name)


def stream_names(repository: Repository, prefix: str) -> list[str]:
    """The names of the streams that begin with `prefix`, sorted; whatever else lies there is passed over."""
    found = links.listing(repository.fd, Category.STREAMS.value)
    return [name for name, is_link, _ in found if is_link and name.startswith(prefix)]


def check_names(repository: Repository) -> Iterator[Finding]:
    """What is wrong with the names of images, and with tags."""
    for prefix in (MANIFEST_PREFIX, CONFIG_PREFIX):
        for name in stream_names(repository, prefix):
            try:
                OciDigest.parse(name.removeprefix(prefix))
            except FormatError as error:
                yield _invalid_name(name, error)
    try:
        found = sorted(links.refs(repository.fd, Category.STREAMS, _TAGS))
    except ComposefsdError:  # the check of the repository tells about it
        found = []
    known = set(stream_names(repository, MANIFEST_PREFIX))  # after the tags: an image gets its name before a tag
    for path, text in found:
        name = refs.decode_tag(path.removeprefix(f"{Category.STREAMS}/{links.REFS}/{_TAGS}/"))
        target = links.last_component(text) or ""
        if name.startswith("@"):
            yield _finding(Code.INVALID_REF_NAME, name, "a leading @ is for digests; nothing finds this tag")
        if target.startswith(MANIFEST_PREFIX) and target not in known:
            yield _finding(Code.TAG_DANGLING, name, f"it leads to {target}, which is not there", {"target": target})
    for path, _ in sorted(_repair_refs(repository)):
        message = "left by a repair that did not come to its end, or in use by one right now"
        yield _finding(Code.REPAIR_UNFINISHED, path, message, {}, Severity.WARNING)


def _repair_refs(repository: Repository) -> Iterator[links.Link]:
    try:
        yield from links.refs(repository.fd, Category.STREAMS, REPAIR_REFS)
    except ComposefsdError:
        return


def _invalid_name(name: str, error: ComposefsdError) -> Finding:
    return _finding(Code.STREAM_NAME_INVALID, f"{Category.STREAMS}/{name}", error.message, {}, Severity.WARNING)


def _finding(
    code: Code, subject: str, message: str, facts: Mapping[str, str] = NO_FACTS, severity: Severity = Severity.ERROR
) -> Finding:
    told = {name: printable(fact) for name, fact in facts.items()}
    return Finding(severity, code, printable(subject), printable(message), told)
