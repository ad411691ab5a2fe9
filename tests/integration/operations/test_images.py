"""Images of the repository: found, named, generated, computed, deployed, removed, collected."""

import asyncio
import io
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real.layers import directory, regular, tar_layer
from real.oci_layout import Image, Layout

from composefsd import errors
from composefsd.deploy.state import VerityPolicy
from composefsd.digests import Algorithm, ObjectId
from composefsd.erofs.format import FormatVersion
from composefsd.oci.reference import Reference
from composefsd.oci.storage import ImageKind
from composefsd.operations import images
from composefsd.operations.collect import collect_garbage
from composefsd.operations.compute_id import Question, compute, write_dumpfile
from composefsd.operations.deploy import deploy, list_deployments, plan_deploy, recover, remove_deployment
from composefsd.operations.facts import forget_facts
from composefsd.operations.generate import compute_digest, generate
from composefsd.operations.host import Host
from composefsd.operations.model import (
    DeployRequest,
    GenerateRequest,
    ImageInfo,
    PayloadType,
    PullRequest,
    TrustState,
)
from composefsd.operations.progress import Silent
from composefsd.operations.pull import pull

Add = Callable[..., Image]
DEFERRED = DeployRequest(verity=VerityPolicy.DEFERRED)
BOOT = frozenset({ImageKind.BOOT})


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def do_pull(host: Host, layout: Layout, tag: str = "os", kinds: frozenset[ImageKind] = frozenset(ImageKind)) -> None:
    run(pull(host, PullRequest(Reference.parse(f"oci:{layout.path}:{tag}"), name=tag, kinds=kinds), Silent()))


def the_image(host: Host, name: str = "os") -> ImageInfo:
    return images.resolve(run(images.list_images(host)), name)


def seal(layout: Layout, add_demo: Add, marker: str = "") -> str:
    """An image whose UKI names its own boot image; answers with the digest."""
    add_demo("base")
    digest = compute(Question(f"oci:{layout.path}:base", bootable=True)).hex
    add_demo("os", f"composefs.digest=v1-sha512-12:{marker or digest} quiet")
    return digest


def test_an_image_tells_what_it_is_and_is_found_by_all_its_names(host: Host, layout: Layout, add_demo: Add) -> None:
    digest = seal(layout, add_demo)
    do_pull(host, layout)
    listed = run(images.list_images(host))
    (image,) = listed
    assert (image.names, image.title, image.trust.state) == (
        ("os",),
        "Hand-made demo, boots nothing",
        TrustState.MATCHING,
    )
    assert image.bootable
    assert image.references == (f"oci:{layout.path}:os",)
    assert {one.digest.hex for one in image.images if one.kind is ImageKind.BOOT} == {digest}
    for name in ("os", str(image.manifest_digest), str(image.config_digest), image.manifest_digest.hex[:12]):
        assert images.resolve(listed, name) is image
    for name in ("", "o", "nothing", image.manifest_digest.hex[:11]):
        with pytest.raises(errors.NoSuchImageError):
            images.resolve(listed, name)


def test_an_image_of_another_tool_is_looked_into_when_it_is_listed(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    do_pull(host, layout)
    first = the_image(host)
    forget_facts(host.settings.state, first.manifest_digest)
    assert the_image(host) == replace(first, references=())  # where it came from is known of our own pulls alone


def test_names_are_given_taken_and_guarded(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    do_pull(host, layout)
    digest = the_image(host).manifest_digest
    run(images.tag(host, digest, "second", replace=False))
    assert the_image(host).names == ("os", "second")
    for name in ("", "@x", "deployment/x", "x" * 300):
        with pytest.raises(errors.InvalidNameError):
            run(images.tag(host, digest, name, replace=False))
    run(images.untag(host, "second", missing_ok=False))
    with pytest.raises(errors.NoSuchImageError):
        run(images.untag(host, "second", missing_ok=False))
    run(images.untag(host, "second", missing_ok=True))


def test_removing_an_image_and_collecting_leaves_nothing_of_it(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    do_pull(host, layout)
    digest = the_image(host).manifest_digest
    run(images.tag(host, digest, "second", replace=False))
    with pytest.raises(errors.InUseError):
        run(images.remove(host, digest, force=False))
    assert run(images.remove(host, digest, force=True)) == ["os", "second"]
    assert run(images.list_images(host)) == []
    told = run(collect_garbage(host, dry_run=True, progress=Silent()))
    done = run(collect_garbage(host, dry_run=False, progress=Silent()))
    assert done.objects_removed == told.objects_removed > 0
    assert [path for path in (host.settings.repository / "objects").rglob("*") if path.is_file()] == []


def test_documents_are_read_byte_for_byte(host: Host, layout: Layout, add_demo: Add) -> None:
    added = add_demo()
    do_pull(host, layout)
    digest = the_image(host).manifest_digest
    for which, blob in (("manifest", added.manifest), ("config", added.config)):
        assert run(images.document(host, digest, which)) == layout.blob_path(blob.digest).read_bytes()
    with pytest.raises(errors.NoSuchDocumentError):
        run(images.document(host, digest, "index"))


def test_any_format_and_hash_can_be_computed_and_only_the_own_generated(
    host: Host, layout: Layout, add_demo: Add
) -> None:
    add_demo()
    do_pull(host, layout, kinds=frozenset())
    digest = the_image(host).manifest_digest
    source = f"oci:{layout.path}:os"
    for version in (FormatVersion.V1, FormatVersion.V2):
        for algorithm in Algorithm:
            request = GenerateRequest(BOOT, version, algorithm)
            (image,) = run(compute_digest(host, digest, request, Silent()))
            assert image.digest == compute(Question(source, bootable=True, version=version, algorithm=algorithm))
    assert the_image(host).images == ()
    for request in (GenerateRequest(BOOT, FormatVersion.V2), GenerateRequest(BOOT, algorithm=Algorithm.SHA256)):
        with pytest.raises(errors.UnsupportedError):
            run(generate(host, digest, request, Silent()))
    with pytest.raises(errors.DigestMismatchError):
        run(generate(host, digest, GenerateRequest(BOOT, expect=ObjectId(bytes(64))), Silent()))
    assert the_image(host).images == ()
    made = run(generate(host, digest, GenerateRequest(BOOT), Silent()))
    assert the_image(host).images == made


def test_a_deployment_comes_is_found_again_and_goes(host: Host, layout: Layout, add_demo: Add) -> None:
    digest = seal(layout, add_demo)
    do_pull(host, layout)
    image = the_image(host).manifest_digest
    plan = run(plan_deploy(host, image, DEFERRED, Silent()))
    assert plan.objections == ()
    made = run(deploy(host, image, DEFERRED, Silent()))
    assert made.id == digest
    assert {file.path: file.size for file in made.files} == {file.path: file.size for file in plan.files}
    assert run(deploy(host, image, DEFERRED, Silent())) == made
    assert run(list_deployments(host)) == [made]
    assert the_image(host).names == ("os",)
    with pytest.raises(errors.InUseError, match="deployed"):
        run(images.remove(host, image, force=True))
    run(images.untag(host, "os", missing_ok=False))
    run(collect_garbage(host, dry_run=False, progress=Silent()))
    assert the_image(host, image.hex).manifest_digest == image
    assert run(remove_deployment(host, digest, state=True, progress=Silent())) > 0
    assert run(list_deployments(host)) == []
    run(collect_garbage(host, dry_run=False, progress=Silent()))
    assert run(images.list_images(host)) == []
    assert run(recover(host)) == ()


@pytest.mark.parametrize(
    ("cmdline", "request_", "reason"),
    [
        (f"composefs.digest=v1-sha512-12:{'cd' * 64}", DEFERRED, "cdcdcdcdcdcd"),
        ("quiet", replace(DEFERRED, type=PayloadType.UKI), "names no composefs image"),
        (None, DeployRequest(), "no fs-verity"),
    ],
)
def test_what_cannot_boot_is_refused_and_the_boot_partition_stays_empty(
    host: Host, layout: Layout, add_demo: Add, cmdline: str | None, request_: DeployRequest, reason: str
) -> None:
    add_demo("os", cmdline)
    do_pull(host, layout)
    image = the_image(host).manifest_digest
    with pytest.raises(errors.NotBootableError, match=reason):
        run(deploy(host, image, request_, Silent()))
    esp = host.settings.esp
    assert esp is not None
    assert [path for path in esp.rglob("*") if path.is_file()] == []
    run(images.remove(host, image, force=False))  # no deployment holds it


def test_an_image_without_anything_to_boot_is_refused_in_words(host: Host, layout: Layout) -> None:
    layout.add_image("os", [tar_layer((directory("usr"), directory("boot"), directory("sysroot"), regular("usr/x")))])
    do_pull(host, layout)
    image = the_image(host)
    assert not image.bootable
    with pytest.raises(errors.NotBootableError, match="no UKI"):
        run(deploy(host, image.manifest_digest, DEFERRED, Silent()))


def test_a_kernel_and_its_initrd_can_be_deployed_instead(host: Host, layout: Layout, add_demo: Add) -> None:
    add_demo()
    do_pull(host, layout, kinds=frozenset())  # the deploy makes the boot image that it needs
    image = the_image(host).manifest_digest
    request = DeployRequest(VerityPolicy.OPTIONAL, PayloadType.TYPE1, kargs=("root=LABEL=x", "rw"))
    made = run(deploy(host, image, request, Silent()))
    assert made.kernel_arguments == ("root=LABEL=x", "rw", f"composefs.digest=?v1-sha512-12:{made.id}")
    assert len(made.files) == 2


def test_without_a_boot_partition_there_is_nothing_and_nothing_to_deploy_to(
    make_host: Callable[..., Host], layout: Layout, add_demo: Add
) -> None:
    host = make_host(esp=None)
    add_demo()
    do_pull(host, layout)
    assert run(list_deployments(host)) == []
    assert run(recover(host)) == ()
    with pytest.raises(errors.EspNotFoundError):
        run(deploy(host, the_image(host).manifest_digest, DEFERRED, Silent()))


def test_a_directory_a_dumpfile_and_an_image_of_one_tree_have_one_digest(tmp_path: Path, layout: Layout) -> None:
    tree = tmp_path / "tree"
    for name in ("usr/lib", "boot", "sysroot", "run"):
        (tree / name).mkdir(parents=True)
    (tree / "usr/lib/file").write_bytes(b"content " * 20)
    for path in (*tree.rglob("*"), tree):
        os.utime(path, (1, 1))
        path.chmod(0o755 if path.is_dir() else 0o644)
    owner = {"uid": os.getuid(), "gid": os.getgid(), "mtime_sec": 1}
    folders = [directory(name, **owner) for name in ("usr", "usr/lib", "boot", "sysroot", "run")]
    layout.add_image("os", [tar_layer((*folders, regular("usr/lib/file", b"content " * 20, **owner)))])
    for bootable in (False, True):
        of_tree = compute(Question(str(tree), bootable=bootable))
        assert of_tree == compute(Question(f"oci:{layout.path}:os", bootable=bootable))
    out = io.BytesIO()
    write_dumpfile(Question(str(tree)), out)
    dump = tmp_path / "dump"
    dump.write_bytes(out.getvalue())
    assert compute(Question(str(dump))) == compute(Question(str(tree)))
    with pytest.raises(errors.InvalidArgumentsError):
        compute(Question(str(dump), bootable=True))
