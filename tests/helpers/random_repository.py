"""Repositories for the collector, made at random: everything that can be among objects, links and refs."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs import writer as erofs
from composefsd.erofs.format import FormatVersion
from composefsd.repository import Metadata, Repository
from composefsd.repository.links import Category
from composefsd.splitstream import ContentType, Writer
from composefsd.tree.table import ROOT, Stat, Tree

STREAMS: Final = Category.STREAMS
IMAGES: Final = Category.IMAGES


def listing(root: Path) -> dict[str, int | str]:
    """Files with their sizes and links with their texts, by path; no directories."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.lstat().st_size
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


class Maker:
    """Makes one repository; the same seed makes the same one."""

    def __init__(self, root: Path, seed: int, algorithm: Algorithm = Algorithm.SHA256) -> None:
        self.root = root
        self._dice = random.Random(seed)
        self._algorithm = algorithm
        self._metadata = Metadata.new(algorithm, (FormatVersion.V1,))

    def make(self) -> None:
        dice = self._dice
        with Repository.create(self.root, self._metadata, insecure=True) as self._repo:
            self._files = [self._repo.objects.store(b"file %d" % n * dice.randrange(1, 30)) for n in range(12)]
            self._made: list[bytes] = [bytes([0] * self._algorithm.digest_bytes)]
            self._names: list[str] = []
            for _ in range(dice.randrange(1, 14)):
                dice.choice((self._stream, self._stream, self._image, self._replace_stream))()
            for _ in range(dice.randrange(0, 8)):
                dice.choice((self._tag, self._nested_ref, self._referrer, self._image_ref))()
            for step in (self._dangling_entry, self._odd_ref, self._odd_entry, self._upper_case, self._temporary):
                if dice.random() < 0.3:
                    step()

    def _some(self, things: Sequence[bytes], most: int) -> list[bytes]:
        return [self._dice.choice(things) for _ in range(self._dice.randrange(most + 1))] if things else []

    # Entries

    def _stored_stream(self) -> bytes:
        kind = self._dice.choice((ContentType.OCI_LAYER, ContentType.OCI_CONFIG, ContentType.OCI_MANIFEST))
        writer = Writer(self._algorithm, kind)
        writer.inline(b"%d" % self._dice.randrange(1 << 30))
        for digest in self._some(self._files, 6):
            writer.external(digest, 10)
        for number, digest in enumerate(self._some(self._made, 4)):
            writer.add_reference(f"reference {number}", digest)
        return self._repo.objects.store(writer.finish())

    def _stream(self) -> None:
        kind = self._dice.choice(("oci-layer", "oci-config", "oci-manifest", "oci-manifest"))
        digits = hashlib.sha256(b"%d" % self._dice.randrange(1 << 30)).hexdigest()
        self._made.append(self._stored_stream())
        self._names.append(f"{kind}-sha256:{digits}")
        self._repo.link_stream(self._names[-1], self._made[-1])

    def _replace_stream(self) -> None:
        """What referred to the older one refers to a mere object now."""
        if self._names:
            self._made.append(self._stored_stream())
            self._repo.link_stream(self._dice.choice(self._names), self._made[-1])

    def _image(self) -> None:
        tree = Tree(self._algorithm)
        tree.set_stat(ROOT, Stat(0o755, 0, 0, self._dice.randrange(1 << 30), 0))
        for number, digest in enumerate(self._some(self._files, 5)):
            tree.insert(ROOT, b"file%d" % number, tree.add_external(Stat(0o644, 0, 0, 1, 0), 100, digest))
        tree.freeze()
        self._made.append(self._repo.objects.store(b"".join(erofs.write(tree, FormatVersion.V1))))
        self._repo.link_image(self._made[-1])

    # Refs

    def _tag(self) -> None:
        manifests = [name for name in self._names if name.startswith("oci-manifest-")]
        if manifests:
            self._repo.tag(f"os/{self._dice.randrange(5)}%", self._dice.choice(manifests))

    def _nested_ref(self) -> None:
        if self._names:
            name = "/".join(self._dice.choice("abc") * 3 for _ in range(self._dice.randrange(1, 4)))
            self._set_ref(STREAMS, name, self._dice.choice(self._names))

    def _referrer(self) -> None:
        manifests = [name.removeprefix("oci-manifest-") for name in self._names if name.startswith("oci-manifest-")]
        if manifests:
            subject, artifact = self._dice.choice(manifests), self._dice.choice(manifests)
            self._set_ref(STREAMS, f"oci-referrers/{subject}/{artifact}", f"oci-manifest-{artifact}")

    def _image_ref(self) -> None:
        images = self._repo.image_ids()
        if images:
            name = "/".join(self._dice.choice("xyz") for _ in range(self._dice.randrange(1, 4)))
            self._set_ref(IMAGES, name, self._dice.choice(images).hex())

    def _set_ref(self, category: Category, name: str, entry: str) -> None:
        taken = set(self._repo.refs(category))
        if not any(one.startswith(f"{name}/") or name.startswith(f"{one}/") for one in taken):
            self._repo.set_ref(category, name, entry)

    # What is odd, and in order all the same

    def _link(self, path: str, text: str) -> None:
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(text)

    def _dangling_entry(self) -> None:
        digest = ObjectId(self._dice.randbytes(self._algorithm.digest_bytes))
        self._link(f"streams/{self._dice.choice('pq')}", f"../objects/{digest.path}")
        self._link(f"images/{digest.hex}", f"../objects/{digest.path}")

    def _odd_ref(self) -> None:
        """One that leads nowhere, or to a directory, and is no root; one whose name is right and whose way is not."""
        self._link("streams/refs/odd/up", self._dice.choice(("..", "../nowhere/..", "/nowhere/..", ".")))
        if self._names:
            self._link("streams/refs/odd/deep/way", f"../{self._dice.choice(self._names)}")

    def _odd_entry(self) -> None:
        """Entries that lead to objects by a way that we do not write, or to none although there is one."""
        path = ObjectId(self._dice.choice(self._made[1:] or self._files)).path
        around = ("../objects/../objects", f"../../{self.root.name}/objects", "../nowhere/objects", "../objects/..")
        self._link("streams/odd-way", f"{self._dice.choice(around)}/{path}")
        self._link("streams/refs/odd-way", "../odd-way")

    def _upper_case(self) -> None:
        digest = ObjectId(self._dice.choice(self._files))
        path = self.root / "objects" / digest.path
        if path.exists():
            path.rename(path.with_name(path.name.upper()))

    def _temporary(self) -> None:
        (self.root / "objects/.tmp-object-abcdefABCDEF").write_bytes(b"left behind")
        self._link(".symlink-abcdefABCDEF", "../nothing")
