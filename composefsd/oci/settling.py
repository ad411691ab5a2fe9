"""Configs and the manifests that name them: keeping them together while streams are written anew.

The stream of a config is written anew whenever an image is recorded in it, and every manifest of the config names
that stream by digest.  A collection follows such a name only to a stream that is current, that is, which a link in
`streams/` leads to.  So all manifests have to follow, whoever rewrote the config.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from composefsd.digests import OciDigest
from composefsd.errors import (
    CorruptError,
    FormatError,
    InvalidNameError,
    LimitExceededError,
    NoSuchObjectError,
    ObjectMissingError,
)
from composefsd.oci.storage import CONFIG_PREFIX, LAYER_PREFIX, config_stream, manifest_stream, manifests
from composefsd.repository import Repository, links
from composefsd.repository.links import Category
from composefsd.splitstream.format import ContentType
from composefsd.splitstream.reader import Splitstream
from composefsd.splitstream.writer import Writer

log = logging.getLogger(__name__)

HELD: Final = "composefsd-held"
"""Refs below `streams/refs` that keep a config while its manifests are rewritten."""

_CONFIG_KEY: Final = "config:"
_REFS: Final = f"{Category.STREAMS}/{links.REFS}/"


def config_key(config: OciDigest) -> str:
    """The named reference of a manifest's stream that leads to its config's."""
    return f"{_CONFIG_KEY}{config}"


def read_stream(repository: Repository, name: str, kind: int) -> Splitstream | None:
    """A stream; None if it is damaged, or not there: fsck tells about it, and nothing else shall fail for it."""
    try:
        return repository.read_stream(name, kind)
    except (CorruptError, FormatError, LimitExceededError, NoSuchObjectError, ObjectMissingError) as error:
        if not isinstance(error, NoSuchObjectError):
            log.warning("stream %s cannot be read: %s", name, error.message)
        return None


def layers_of_manifests(repository: Repository, config: OciDigest) -> dict[str, bytes]:
    """The layers of all manifests that have this config.

    An image's config is that of its layers alone, but most artifacts have one and the same config, `{}`.  Whoever
    pulls one of them again looks for its layers there: composefs-rs fails if it finds others.
    """
    key, found = config_key(config), dict[str, bytes]()
    for digest in manifests(repository):
        stream = read_stream(repository, manifest_stream(digest), ContentType.OCI_MANIFEST)
        if stream is not None and key in stream.named_refs:
            found |= {name: layer for name, layer in stream.named_refs.items() if name != key}
    return found


def drop_layers(repository: Repository, config: OciDigest) -> None:
    """Let a config go without layers that none of its manifests has any more: they would never be collected."""
    name, layers = config_stream(config), layers_of_manifests(repository, config)
    if repository.stream(name) is None:
        return
    stream = repository.read_stream(name, ContentType.OCI_CONFIG)
    kept = {key: target for key, target in stream.named_refs.items() if key in layers or not _is_layer(key)}
    if not layers or kept == stream.named_refs:  # nobody has the config: it is collected as a whole
        return
    config_id = repository.objects.store(rewritten(repository, stream, kept))
    repository.sync()
    with held(repository, config, config_id):
        repository.link_stream(name, config_id)
        settle(repository, config)


def _is_layer(reference: str) -> bool:
    """Whether a config's named reference is a layer: those go by digests, composefs images by words."""
    return ":" in reference


@contextmanager
def held(repository: Repository, config: OciDigest, config_id: bytes) -> Iterator[None]:
    """Keep a config's stream by a ref of its own while manifests still name the one that it replaces.

    The collector follows a manifest's reference only to a stream that is current.  If the power failed between config
    and manifest, it would find neither the old config nor the new one by the tag.
    """
    if _current(repository, config_stream(config)) in (None, config_id):
        yield
        return
    ref = f"{HELD}/{config.hex}"
    repository.set_ref(Category.STREAMS, ref, config_stream(config))
    yield
    repository.sync()
    repository.remove_ref(Category.STREAMS, ref)


def _current(repository: Repository, name: str) -> bytes | None:
    """What the link of a stream names; None if there is none, or one that names no object and keeps nothing.

    The name may be from a stream that somebody else wrote: nothing has one that is impossible.
    """
    try:
        return repository.stream(name)
    except (CorruptError, InvalidNameError):
        return None


def heal(repository: Repository) -> None:
    """Finish what a commit that was interrupted has begun: let all manifests name the current config."""
    for path, text in list(links.refs(repository.fd, Category.STREAMS, HELD)):
        entry = links.last_component(text) or ""
        with suppress(FormatError):  # whatever it is, it holds no config
            settle(repository, OciDigest.parse(entry.removeprefix(CONFIG_PREFIX)))
        repository.sync()
        repository.remove_ref(Category.STREAMS, path.removeprefix(_REFS))


def settle(repository: Repository, config: OciDigest | None = None) -> None:
    """Let every manifest, or every one of this config, name the current stream of its config.

    One that names another stream keeps that, but not what the current one names, nor the config's document if that
    belongs to nobody else: composefs-rs writes a config anew for one of its manifests only.

    Without `config` this comes before a collection, which would take what the named stream leads to as nobody's.  So
    it raises CorruptError if that stream is sound and the current one is damaged or gone: a repair can put it back.
    """
    streams = {}
    for one in _unsettled(repository, config):
        data = rewritten(repository, one.stream, {**one.stream.named_refs, one.key: one.current})
        streams[one.name] = repository.objects.store(data)
    for name, digest in streams.items():  # all at the end: the first link makes all of them durable
        repository.link_stream(name, digest)


def unsettled_configs(repository: Repository) -> set[str]:
    """The streams of configs that `settle` would let manifests name."""
    return {f"{CONFIG_PREFIX}{one.key.removeprefix(_CONFIG_KEY)}" for one in _unsettled(repository)}


def outdated_layers(repository: Repository) -> set[str]:
    """The streams of layers that configs name by what is not current: a collection has to keep them as roots.

    It would not follow the names, and the current streams have no others.  Raises CorruptError if a config names a
    layer that is there while its link is not: a repair can put that back, but not what a collection would take.
    """
    found, seen = set[str](), set[str]()
    for digest in manifests(repository):
        manifest = read_stream(repository, manifest_stream(digest), ContentType.OCI_MANIFEST)
        keys = manifest.named_refs if manifest is not None else ()
        configs = {f"{CONFIG_PREFIX}{key.removeprefix(_CONFIG_KEY)}" for key in keys if key.startswith(_CONFIG_KEY)}
        for name in configs - seen:
            stream = _current_stream(repository, name)
            layers = stream.named_refs.items() if stream is not None else ()
            found.update(layer for key, named in layers if (layer := _outdated(repository, name, key, named)))
        seen |= configs
    return found


def _current_stream(repository: Repository, name: str) -> Splitstream | None:
    return None if _current(repository, name) is None else read_stream(repository, name, ContentType.OCI_CONFIG)


def _outdated(repository: Repository, config: str, key: str, named: bytes) -> str | None:
    """The stream of the layer `key` if it is not the one that the config names."""
    layer = f"{LAYER_PREFIX}{key}"
    if not _is_layer(key) or (current := _current(repository, layer)) == named:
        return None
    if current is not None and repository.objects.has(current):
        return layer
    if not repository.objects.has(named):  # lost already
        return None
    raise CorruptError(f"stream {layer} is gone, and {config} names it: repair the repository", subject=layer)


@dataclass(frozen=True, slots=True)
class _Unsettled:
    """A manifest whose stream, `name`, has not the `current` stream of its config under `key`."""

    name: str
    stream: Splitstream
    key: str
    current: bytes


def _unsettled(repository: Repository, config: OciDigest | None = None) -> Iterator[_Unsettled]:
    for digest in manifests(repository):
        name = manifest_stream(digest)
        stream = read_stream(repository, name, ContentType.OCI_MANIFEST)
        if stream is None or not _is_document(repository, stream):  # fsck tells about it
            continue
        for key, named in stream.named_refs.items():
            if not key.startswith(_CONFIG_KEY) or (config is not None and key != config_key(config)):
                continue
            config_name = f"{CONFIG_PREFIX}{key.removeprefix(_CONFIG_KEY)}"
            current = _current(repository, config_name)
            if current == named:
                continue
            if current is not None and (_is_config(repository, current) or not _is_config(repository, named)):
                yield _Unsettled(name, stream, key, current)
            elif config is None and _is_config(repository, named):
                raise CorruptError(
                    f"stream {config_name} is damaged, and {name} has another one that is not; repair the repository",
                    subject=config_name,
                )


def _is_config(repository: Repository, digest: bytes) -> bool:
    """Whether this is the stream of a config, and has its document."""
    try:
        return _is_document(repository, repository.read_stream_object(digest, ContentType.OCI_CONFIG))
    except (CorruptError, FormatError, LimitExceededError, ObjectMissingError):
        return False


def _is_document(repository: Repository, stream: Splitstream) -> bool:
    """Whether a stream is of one object, and that is there."""
    return len(stream.object_refs) == 1 and repository.objects.has(stream.object_refs[0])


def rewritten(repository: Repository, stream: Splitstream, references: Mapping[str, bytes]) -> bytes:
    """The stream of a document with other named references."""
    writer = Writer(repository.algorithm, stream.content_type)
    writer.external(stream.object_refs[0], stream.size_bytes)
    for name, target in references.items():
        writer.add_reference(name, target)
    return writer.finish()
