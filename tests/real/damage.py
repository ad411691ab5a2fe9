"""Every kind of damage that a check of a repository has to find, done to a repository on purpose.

    for damage in DAMAGES:
        told = damage.apply(repository)    # the repository of one pulled image of several layers, which has a tag
        assert (damage.code, told) in findings(repository)

`apply` answers with the subject of the finding.  The repository may be secure: files are replaced, never written to.
What is damaged belongs to the image of the first tag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from composefsd.digests import Algorithm, ObjectId, OciDigest
from composefsd.oci.manifest import Content
from composefsd.oci.storage import StoredImage, config_stream, layer_stream, load_image, manifest_stream
from composefsd.repository import Metadata, Repository
from composefsd.repository.links import link_text
from composefsd.splitstream import Splitstream, Writer
from composefsd.splitstream.format import ContentType


@dataclass(frozen=True, slots=True)
class Damage:
    """One kind of damage.

    code is the finding's; depth the least at which it shows (quick, full).  `is_repaired` if a repair, with the
    source of the image at hand, leaves nothing of it; peer_finds if composefs-rs's checks (of the repository, or of
    its OCI images) fail for it, too.
    """

    name: str
    apply: Callable[[Path], str]
    code: str
    depth: str = "quick"
    is_repaired: bool = True
    peer_finds: bool = True


class Victim:
    """The image that is damaged, and where its parts lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with Repository.open(root, writable=False) as repository:
            self.algorithm: Algorithm = repository.algorithm
            self.tag, self.manifest_stream = min(repository.tags().items())
            self.digest = OciDigest.parse(self.manifest_stream.removeprefix("oci-manifest-"))
            self.stored: StoredImage = load_image(repository, self.digest)
            self.config_stream = config_stream(self.content.manifest.config.digest)
            self.manifest = self._linked(repository, self.manifest_stream)
            self.config = self._linked(repository, self.config_stream)
            layers = zip(self.content.layers, self.stored.layers, strict=True)
            self.layers = [(layer_stream(layer.diff_id), str(layer.diff_id), stream) for layer, stream in layers]
            self.streams = {name: repository.read_stream_object(digest) for name, _, digest in self.layers}

    @property
    def content(self) -> Content:
        return self.stored.content

    def _linked(self, repository: Repository, name: str) -> bytes:
        digest = repository.stream(name)
        assert digest is not None
        return digest

    @property
    def first(self) -> tuple[str, str, bytes]:
        """Stream name, diff_id and stream digest of the first layer, which has external files."""
        return self.layers[0]

    @property
    def file(self) -> bytes:
        """An object of the first layer: the content of a file."""
        return self.streams[self.first[0]].object_refs[0]

    @property
    def image(self) -> ObjectId:
        """A composefs image of it."""
        return self.stored.images[0].digest

    def document(self, stream: bytes) -> bytes:
        """The object of the JSON document of a manifest's or a config's stream."""
        return Splitstream.parse(self.path(stream).read_bytes(), self.algorithm).object_refs[0]

    def path(self, digest: bytes) -> Path:
        """Where an object lies."""
        return self.root / "objects" / ObjectId(digest).path

    def stream_path(self, name: str) -> Path:
        """Where the link of a stream lies."""
        return self.root / "streams" / name


def _subject(digest: bytes) -> str:
    return f"objects/{ObjectId(digest).path}"


def _overwrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    _overwrite(path, bytes(data))


def _point(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(text)


# Objects


def flip_file(root: Path) -> str:
    victim = Victim(root)
    _flip(victim.path(victim.file))
    return _subject(victim.file)


def truncate_file(root: Path) -> str:
    victim = Victim(root)
    path = victim.path(victim.file)
    _overwrite(path, path.read_bytes()[:-1])
    return _subject(victim.file)


def empty_file(root: Path) -> str:
    victim = Victim(root)
    _overwrite(victim.path(victim.file), b"")
    return _subject(victim.file)


def delete_file(root: Path) -> str:
    victim = Victim(root)
    victim.path(victim.file).unlink()
    return f"streams/{victim.first[0]}"


def link_in_place_of_file(root: Path) -> str:
    victim = Victim(root)
    _point(victim.path(victim.file), "/etc/hostname")
    return _subject(victim.file)


def stray_object(root: Path) -> str:
    directory = root / "objects" / "00"
    directory.mkdir(exist_ok=True)
    (directory / "notes").write_text("mine")
    return "objects/00/notes"


# Layers


def flip_layer_stream(root: Path) -> str:
    victim = Victim(root)
    _flip(victim.path(victim.first[2]))
    return f"streams/{victim.first[0]}"


def delete_layer_stream(root: Path) -> str:
    victim = Victim(root)
    victim.path(victim.first[2]).unlink()
    return f"streams/{victim.first[0]}"


def delete_layer_link(root: Path) -> str:
    victim = Victim(root)
    victim.stream_path(victim.first[0]).unlink()
    return victim.first[1]


def dangling_layer_link(root: Path) -> str:
    victim = Victim(root)
    path = f"streams/{victim.first[0]}"
    _point(root / path, link_text(path, _subject(bytes(victim.algorithm.digest_bytes))))
    return path


def layer_link_to_another(root: Path) -> str:
    victim = Victim(root)
    path = f"streams/{victim.first[0]}"
    _point(root / path, link_text(path, _subject(victim.layers[1][2])))
    return victim.first[1]


def layer_link_to_no_object(root: Path) -> str:
    victim = Victim(root)
    _point(victim.stream_path(victim.first[0]), "../meta.json")
    return f"streams/{victim.first[0]}"


def layer_file_in_place_of_link(root: Path) -> str:
    """What a copy looks like that followed all links."""
    victim = Victim(root)
    path = victim.stream_path(victim.first[0])
    _overwrite(path, victim.path(victim.first[2]).read_bytes())
    return f"streams/{victim.first[0]}"


def layer_renamed(root: Path) -> str:
    """The layer's name and the reference to it both lead to the stream of another layer."""
    victim = Victim(root)
    _rewrite_references(victim, {victim.first[1]: victim.layers[1][2]})
    layer_link_to_another(root)
    return victim.first[1]


def layer_cut_wrongly(root: Path) -> str:
    """The right tar, but with all its files inline, of which no tree can be made."""
    victim = Victim(root)
    name, diff_id, _ = victim.first
    writer = Writer(victim.algorithm, ContentType.OCI_LAYER)
    stream = victim.streams[name]
    for chunk in stream.chunks():
        data = chunk if isinstance(chunk, bytes) else victim.path(stream.object_refs[chunk]).read_bytes()
        writer.inline(data)
    with Repository.open(root) as repository:
        digest = repository.objects.store(writer.finish())
        repository.link_stream(name, digest)
    _rewrite_references(victim, {diff_id: digest})
    return diff_id


def layer_reference_outdated(root: Path) -> str:
    """The layer was stored anew as another stream, and the image still names the old one."""
    victim = Victim(root)
    name, diff_id, _ = victim.first
    stream = victim.streams[name]
    with Repository.open(root) as repository:
        digest = repository.objects.store(_copied(victim.algorithm, stream, root))
        repository.link_stream(name, digest)
    return diff_id


def _copied(algorithm: Algorithm, stream: Splitstream, root: Path) -> bytes:
    """The same stream with other bytes: it has a named reference more."""
    writer = Writer(algorithm, stream.content_type)
    for chunk in stream.chunks():
        if isinstance(chunk, bytes):
            writer.inline(chunk)
        else:
            digest = stream.object_refs[chunk]
            writer.external(digest, (root / "objects" / ObjectId(digest).path).stat().st_size)
    writer.add_reference("note", stream.object_refs[0])
    return writer.finish()


# Manifest and config


def _rewrite_references(victim: Victim, changes: dict[str, bytes | None]) -> None:
    """Change named references of the config, or of the manifest for its config; None takes one away."""
    with Repository.open(victim.root) as repository:
        old = repository.read_stream(victim.config_stream)
        config = repository.objects.store(_document(old, changes))
        repository.link_stream(victim.config_stream, config)
        key = f"config:{victim.content.manifest.config.digest}"
        old = repository.read_stream(victim.manifest_stream)
        manifest = repository.objects.store(_document(old, {key: config, **changes}))
        repository.link_stream(victim.manifest_stream, manifest)


def _document(stream: Splitstream, changes: dict[str, bytes | None]) -> bytes:
    writer = Writer(stream.algorithm, stream.content_type)
    writer.external(stream.object_refs[0], stream.size_bytes)
    for name, target in {**stream.named_refs, **changes}.items():
        if target is not None and (name in stream.named_refs):
            writer.add_reference(name, target)
    return writer.finish()


def flip_manifest(root: Path) -> str:
    victim = Victim(root)
    _flip(victim.path(victim.document(victim.manifest)))
    return str(victim.digest)


def delete_manifest(root: Path) -> str:
    victim = Victim(root)
    victim.path(victim.document(victim.manifest)).unlink()
    return str(victim.digest)


def delete_manifest_stream(root: Path) -> str:
    victim = Victim(root)
    victim.path(victim.manifest).unlink()
    return str(victim.digest)


def manifest_link_to_config(root: Path) -> str:
    victim = Victim(root)
    path = f"streams/{victim.manifest_stream}"
    _point(root / path, link_text(path, _subject(victim.config)))
    return str(victim.digest)


def manifest_of_another(root: Path) -> str:
    """The stream of the manifest holds another document."""
    victim = Victim(root)
    with Repository.open(root) as repository:
        old = repository.read_stream(victim.manifest_stream)
        writer = Writer(victim.algorithm, ContentType.OCI_MANIFEST)
        data = b'{"schemaVersion":2}'
        writer.external(repository.objects.store(data), len(data))
        for name, target in old.named_refs.items():
            writer.add_reference(name, target)
        repository.link_stream(victim.manifest_stream, repository.objects.store(writer.finish()))
    return str(victim.digest)


def flip_config(root: Path) -> str:
    victim = Victim(root)
    _flip(victim.path(victim.document(victim.config)))
    return str(victim.digest)


def delete_config(root: Path) -> str:
    victim = Victim(root)
    victim.path(victim.document(victim.config)).unlink()
    return str(victim.digest)


def delete_config_stream(root: Path) -> str:
    victim = Victim(root)
    victim.path(victim.config).unlink()
    return str(victim.digest)


def delete_config_link(root: Path) -> str:
    victim = Victim(root)
    victim.stream_path(victim.config_stream).unlink()
    return str(victim.digest)


def config_of_another(root: Path) -> str:
    """The stream of the config holds another document."""
    victim = Victim(root)
    with Repository.open(root) as repository:
        old = repository.read_stream(victim.config_stream)
        writer = Writer(victim.algorithm, ContentType.OCI_CONFIG)
        writer.external(repository.objects.store(b"{}"), 2)
        for name, target in old.named_refs.items():
            writer.add_reference(name, target)
        config = repository.objects.store(writer.finish())
        repository.link_stream(victim.config_stream, config)
        key = f"config:{victim.content.manifest.config.digest}"
        manifest = repository.read_stream(victim.manifest_stream)
        repository.link_stream(victim.manifest_stream, repository.objects.store(_document(manifest, {key: config})))
    return str(victim.digest)


def config_reference_missing(root: Path) -> str:
    victim = Victim(root)
    with Repository.open(root) as repository:
        manifest = repository.read_stream(victim.manifest_stream)
        key = f"config:{victim.content.manifest.config.digest}"
        repository.link_stream(victim.manifest_stream, repository.objects.store(_document(manifest, {key: None})))
    return str(victim.digest)


def config_reference_outdated(root: Path) -> str:
    victim = Victim(root)
    with Repository.open(root) as repository:
        config = repository.read_stream(victim.config_stream)
        image = victim.stored.images[0]
        rewritten = _document(config, {image.reference: None})
        repository.link_stream(victim.config_stream, repository.objects.store(rewritten))
    return str(victim.digest)


def layer_reference_missing(root: Path) -> str:
    victim = Victim(root)
    _rewrite_references(victim, {victim.first[1]: None})
    return victim.first[1]


# Composefs images


def flip_image(root: Path) -> str:
    victim = Victim(root)
    _flip(victim.path(victim.image.digest))
    return f"images/{victim.image.hex}"


def truncate_image(root: Path) -> str:
    victim = Victim(root)
    path = victim.path(victim.image.digest)
    _overwrite(path, path.read_bytes()[:100])
    return f"images/{victim.image.hex}"


def delete_image(root: Path) -> str:
    victim = Victim(root)
    victim.path(victim.image.digest).unlink()
    return str(victim.image)


def delete_image_link(root: Path) -> str:
    victim = Victim(root)
    (root / "images" / victim.image.hex).unlink()
    return str(victim.image)


def image_link_to_another(root: Path) -> str:
    victim = Victim(root)
    path = f"images/{victim.image.hex}"
    _point(root / path, link_text(path, _subject(victim.stored.images[1].digest.digest)))
    return path


def image_file_in_place_of_link(root: Path) -> str:
    victim = Victim(root)
    path = root / "images" / victim.image.hex
    _overwrite(path, victim.path(victim.image.digest).read_bytes())
    return f"images/{victim.image.hex}"


def image_that_is_none(root: Path) -> str:
    with Repository.open(root) as repository:
        digest = repository.objects.store(b"no image" * 1000)
        repository.link_image(digest)
    return f"images/{digest.hex()}"


# Refs, names, leftovers


def dangling_tag(root: Path) -> str:
    refs = root / "streams" / "refs" / "oci"
    (refs / "gone").symlink_to(f"../../{manifest_stream(OciDigest('sha256', '0' * 64))}")
    return "gone"


def tag_with_at(root: Path) -> str:
    victim = Victim(root)
    (root / "streams" / "refs" / "oci" / "@name").symlink_to(f"../../{victim.manifest_stream}")
    return "@name"


def file_among_refs(root: Path) -> str:
    (root / "streams" / "refs" / "file").touch()
    return "streams/refs/file"


def ref_to_an_object(root: Path) -> str:
    victim = Victim(root)
    (root / "streams" / "refs" / "odd").symlink_to(f"../../{_subject(victim.manifest)}")
    return "streams/refs/odd"


def loop_among_refs(root: Path) -> str:
    (root / "streams" / "refs" / "loop").symlink_to("loop")
    return "streams/refs/loop"


def dangling_ref(root: Path) -> str:
    refs = root / "images" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "gone").symlink_to("../gone")
    return "images/refs/gone"


def file_among_streams(root: Path) -> str:
    (root / "streams" / "file").write_text("neither stream nor link")
    return "streams/file"


def stray_temporary(root: Path) -> str:
    name = "objects/.tmp-object-" + "a" * 12
    (root / name).touch()
    return name


def stray_link(root: Path) -> str:
    name = ".symlink-" + "b" * 12
    (root / name).symlink_to("nowhere")
    return name


def garbled_metadata(root: Path) -> str:
    _overwrite(root / "meta.json", b"{")
    return "meta.json"


def other_metadata(root: Path) -> str:
    """The repository says that it is of the other hash."""
    found = Metadata.parse((root / "meta.json").read_bytes())
    other = Algorithm.SHA256 if found.algorithm is Algorithm.SHA512 else Algorithm.SHA512
    _overwrite(root / "meta.json", Metadata.new(other, found.formats).serialize())
    return "meta.json"


DAMAGES: Final = (
    Damage("a byte of a file flipped", flip_file, "object-digest-mismatch", "full"),
    Damage("a file cut short", truncate_file, "object-digest-mismatch", "full"),
    Damage("a file emptied", empty_file, "object-digest-mismatch", "full"),
    Damage("a file deleted", delete_file, "missing-object-ref"),
    Damage("a symbolic link in place of a file", link_in_place_of_file, "object-open-failed", "full"),
    Damage("something else among the objects", stray_object, "object-invalid-name", "full", is_repaired=False),
    Damage("a byte of a layer's stream flipped", flip_layer_stream, "stream-open-failed"),
    Damage("a layer's stream deleted", delete_layer_stream, "broken-symlink"),
    Damage("a layer without its name", delete_layer_link, "layer-stream-missing"),
    Damage("a layer's name that leads nowhere", dangling_layer_link, "broken-symlink"),
    Damage("a layer's name that leads to another", layer_link_to_another, "layer-digest-mismatch", peer_finds=False),
    Damage("a layer's name that leads to no object", layer_link_to_no_object, "entry-not-an-object"),
    Damage("a file in place of a layer's name", layer_file_in_place_of_link, "entry-not-symlink"),
    Damage("a layer that is another", layer_renamed, "layer-digest-mismatch", "full", peer_finds=False),
    Damage("a layer cut as no tree can be made of", layer_cut_wrongly, "layer-unusable", "full", peer_finds=False),
    Damage("an image that names an old layer", layer_reference_outdated, "layer-ref-outdated", peer_finds=False),
    Damage("an image that does not name a layer", layer_reference_missing, "layer-ref-missing"),
    Damage("a byte of a manifest flipped", flip_manifest, "manifest-read-failed"),
    Damage("a manifest deleted", delete_manifest, "manifest-read-failed"),
    Damage("a manifest's stream deleted", delete_manifest_stream, "manifest-read-failed"),
    Damage("a manifest's name that leads to a config", manifest_link_to_config, "manifest-read-failed"),
    Damage("another document as manifest", manifest_of_another, "manifest-digest-mismatch"),
    Damage("a byte of a config flipped", flip_config, "config-read-failed"),
    Damage("a config deleted", delete_config, "config-read-failed"),
    Damage("a config's stream deleted", delete_config_stream, "config-read-failed"),
    Damage("a config without its name", delete_config_link, "config-stream-missing", peer_finds=False),
    Damage("another document as config", config_of_another, "config-digest-mismatch"),
    Damage("a manifest that does not name its config", config_reference_missing, "config-ref-missing"),
    Damage("a manifest that names an old config", config_reference_outdated, "config-ref-outdated", peer_finds=False),
    Damage("a byte of a composefs image flipped", flip_image, "image-read-failed"),
    Damage("a composefs image cut short", truncate_image, "image-read-failed"),
    Damage("a composefs image deleted", delete_image, "image-lost"),
    Damage("a composefs image without its name", delete_image_link, "image-unlinked", peer_finds=False),
    Damage("a composefs image's name on another", image_link_to_another, "image-name-mismatch", peer_finds=False),
    Damage("a file in place of an image's name", image_file_in_place_of_link, "entry-not-symlink"),
    Damage("an image that is none", image_that_is_none, "image-invalid", is_repaired=False),
    Damage("a tag of an image that is not there", dangling_tag, "tag-dangling", is_repaired=False),
    Damage("a tag that begins with @", tag_with_at, "invalid-ref-name", is_repaired=False),
    Damage("a file among the refs", file_among_refs, "unexpected-file-type", is_repaired=False),
    Damage("a ref to an object", ref_to_an_object, "ref-not-an-entry", is_repaired=False, peer_finds=False),
    Damage("a ref to itself", loop_among_refs, "stat-failed", is_repaired=False),
    Damage("a ref that leads nowhere", dangling_ref, "broken-symlink", is_repaired=False),
    Damage("a file among the streams", file_among_streams, "entry-not-symlink", is_repaired=False),
    Damage("an object left by a dead writer", stray_temporary, "stray-temporary", peer_finds=False),
    Damage("a link left by a dead writer", stray_link, "stray-temporary", peer_finds=False),
    Damage("metadata that cannot be read", garbled_metadata, "metadata-parse-failed", is_repaired=False),
)
"""All but `other_metadata`, after which a repository is another one altogether."""
