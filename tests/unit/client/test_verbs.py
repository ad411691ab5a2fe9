"""What the verbs do with their arguments before they call."""

from pathlib import Path

import pytest

from composefsd.client.properties import Properties, Value
from composefsd.client.records import Deployment
from composefsd.client.verbs import absolute, find_deployment, is_damaged, kernel_arguments


def deployment(identity: str) -> Deployment:
    return Deployment.parse(f"/{identity}", Properties({"Id": identity}))


FIRST, AGAIN, OTHER = "a" * 64, "a" * 64 + ".1", "b" * 64
LISTED = [deployment(identity) for identity in (FIRST, AGAIN, OTHER)]


def test_a_relative_path_is_told_to_the_daemon_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("oci:layout:stable") == f"oci:{tmp_path}/layout:stable"
    assert absolute("oci-archive:./os.tar") == f"oci-archive:{tmp_path}/./os.tar"


@pytest.mark.parametrize("reference", ["oci:/srv/os", "docker://registry.example/os", "oci:", "os", "ocix:os"])
def test_any_other_reference_is_told_as_it_is(reference: str) -> None:
    assert absolute(reference) == reference


def test_kernel_arguments_are_separated_by_spaces_outside_of_quotes() -> None:
    assert kernel_arguments(["quiet  console=ttyS0", 'a="b c" d']) == ("quiet", "console=ttyS0", 'a="b c"', "d")
    assert kernel_arguments([" "]) == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FIRST, FIRST),
        (AGAIN, AGAIN),
        ("a" * 12, FIRST),
        ("a" * 12 + ".1", AGAIN),
        ("b" * 20, OTHER),
        ("a" * 11, None),
        ("a" * 12 + ".2", None),
        ("rollback", None),
        ("", None),
    ],
)
def test_a_deployment_is_found_by_its_id_or_by_what_the_table_shows(text: str, found: str | None) -> None:
    assert find_deployment(LISTED, text) == (found and f"/{found}")


def test_a_check_fails_for_errors_and_not_for_warnings() -> None:
    warning: Value = ["warning", "orphan", "x", "text"]
    error: Value = ["error", "missing", "y", "text"]
    assert not is_damaged(Properties({}))
    assert not is_damaged(Properties({"findings": [warning], "findings-total": 1}))
    assert is_damaged(Properties({"findings": [warning, error], "findings-total": 2}))


def test_findings_that_nobody_can_see_count_as_errors() -> None:
    assert is_damaged(Properties({"findings": [], "findings-total": 1}))
