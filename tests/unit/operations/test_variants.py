"""What a digest is searched among, and in which order."""

from dataclasses import replace

import pytest

from composefsd.erofs.format import FormatVersion
from composefsd.oci.storage import ImageKind
from composefsd.operations.variants import ImageOrder, variants
from composefsd.tree.normative import XattrMode
from composefsd.tree.profile import Profile

V1, V2 = FormatVersion.V1, FormatVersion.V2
ALLOWED, USER = XattrMode
BOOT = ImageOrder(ImageKind.BOOT, V1, ALLOWED)
NORMATIVE = ImageOrder(ImageKind.NORMATIVE, V1, ALLOWED)


def test_likely_variants_come_first_and_none_twice() -> None:
    assert [one.words for one in variants([BOOT])] == [
        "boot v1",
        "boot v2",
        "boot v1, keep-user-xattrs",
        "boot v2, keep-user-xattrs",
        "boot v1, composefs-rs up to 0.9.2",
        "boot v1, keep-user-xattrs, composefs-rs up to 0.9.2",
        "boot v1, composefs-rs 0.7.0",
        "boot v2, composefs-rs 0.7.0",
    ]


@pytest.mark.parametrize("first", variants([BOOT]), ids=lambda order: order.words)
def test_what_is_asked_for_is_tried_first(first: ImageOrder) -> None:
    found = variants([first])
    assert found[0] == first
    assert set(found) == set(variants([BOOT]))


def test_normative_images_have_no_past() -> None:
    assert set(variants([NORMATIVE])) == {
        replace(NORMATIVE, format=version, xattrs=mode) for version in (V1, V2) for mode in XattrMode
    }
    assert all(one.kind is ImageKind.BOOT for one in variants([NORMATIVE, BOOT]) if one.profile != Profile.CURRENT)


@pytest.mark.parametrize("order", variants([NORMATIVE, BOOT]), ids=lambda order: order.words)
def test_an_order_is_read_back(order: ImageOrder) -> None:
    assert ImageOrder.read(order.values()) == order
