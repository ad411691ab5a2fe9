"""References and platforms."""

from pathlib import Path

import pytest

from composefsd.errors import InvalidReferenceError
from composefsd.oci.reference import Platform, Reference, Transport


@pytest.mark.parametrize(
    ("text", "transport", "path", "tag"),
    [
        ("oci:/srv/os", Transport.OCI, "/srv/os", ""),
        ("oci:/srv/os:stable", Transport.OCI, "/srv/os", "stable"),
        ("oci:/srv/os:registry.example/os:1", Transport.OCI, "/srv/os", "registry.example/os:1"),
        ("oci:relative", Transport.OCI, "relative", ""),
        ("oci-archive:/srv/os.tar:v1", Transport.OCI_ARCHIVE, "/srv/os.tar", "v1"),
    ],
)
def test_the_path_ends_at_the_first_colon(text: str, transport: Transport, path: str, tag: str) -> None:
    reference = Reference.parse(text)
    assert reference == Reference(transport, Path(path), tag)
    assert str(reference) == text


@pytest.mark.parametrize(
    "text", ["", "oci", "oci:", "oci::tag", "fedora", "docker://x/y:z", "oci:/a\nb", "oci:" + "x" * 5000]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        Reference.parse(text)


def test_an_unknown_transport_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InvalidReferenceError, match="oci:, oci-archive:"):
        Reference.parse("docker://registry.example/os")


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm64/v8"])
def test_platforms_read_as_they_are_written(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["", "linux", "linux/", "linux/a/b/c", "Linux/amd64", "linux/../x"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("platform", "choices"),
    [
        ("linux/amd64", ("",)),
        ("linux/arm/v7", ("v7", "v6", "v5", "")),
        ("linux/arm64/v8", ("v8", "")),
        ("linux/riscv64/rva20", ("rva20", "")),
        ("linux/amd64/v3", ("v3", "")),
        ("linux/arm64", ("", "v8")),
    ],
)
def test_variants_are_tried_as_containers_image_tries_them(platform: str, choices: tuple[str, ...]) -> None:
    assert Platform.parse(platform).choices() == choices
