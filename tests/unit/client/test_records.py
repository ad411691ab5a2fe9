"""Properties of the bus as records, and records as JSON."""

import json

import pytest

from composefsd.client.failures import AnswerError
from composefsd.client.properties import Properties, Value, key_of, keyed, properties, rows
from composefsd.client.records import Boot, Daemon, Deployment, Image, Job, Link, Repository
from composefsd.client.results import result_json, to_json

IMAGE: dict[str, Value] = {
    "ManifestDigest": "sha256:aa",
    "Names": ["os", "stable"],
    "Created": 1_700_000_000,
    "Digests": [["boot", "v1", "sha512", 4096, "sha512:bb"]],
    "Trust": ["matching", "the UKI names this image", {"uki-digest": "bb"}],
    "Bootable": [False, ["no kernel", "no UKI"]],
    "BootResources": [["uki", "/boot/EFI/Linux/a.efi", "6.12", {"addon-count": 1}]],
    "LaterAddition": ["whatever"],
}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ManifestDigest", "manifest_digest"),
        ("manifest-digest", "manifest_digest"),
        ("CreatedUSec", "created_usec"),
        ("LastGarbageCollection", "last_garbage_collection"),
        ("Os", "os"),
    ],
)
def test_keys_are_the_names_of_the_bus_with_underscores(name: str, key: str) -> None:
    assert key_of(name) == key


def test_keys_within_values_are_so_too() -> None:
    assert keyed([{"uki-digest": {"a-b": [1]}}]) == [{"uki_digest": {"a_b": [1]}}]


def test_an_image_is_read_and_additions_to_the_api_do_not_disturb() -> None:
    image = Image.parse("/image", Properties(IMAGE))
    assert (image.names, image.bootable, image.reasons) == (("os", "stable"), False, ("no kernel", "no UKI"))
    assert image.digests[0].digest == "sha512:bb"
    assert image.trust.evidence == {"uki_digest": "bb"}
    assert image.boot_resources[0].details == {"addon_count": 1}


def test_the_chain_of_trust_is_read_apart_from_the_evidence() -> None:
    evidence: dict[str, Value] = {"uki-digest": "bb", "chain": [["verity", "good", "in words"]], "ends": "at the top"}
    trust = Image.parse("/", Properties({**IMAGE, "Trust": ["matching", "all is right", evidence]})).trust
    assert trust.evidence == {"uki_digest": "bb"}
    assert trust.chain == (Link("verity", "good", "in words"),)
    assert trust.ends == "at the top"
    with pytest.raises(AnswerError, match="chain"):
        Image.parse("/", Properties({"Trust": ["matching", "", {"chain": [["verity", "good"]]}]}))


def test_what_a_deployment_enforces_is_read() -> None:
    told: dict[str, Value] = {"type": "uki", "verity": "require", "digest": "signed", "repository-verity": True}
    enforced = Deployment.parse("/", Properties({"Enforcement": told})).enforcement
    assert (enforced.verity, enforced.digest, enforced.repository_verity) == ("require", "signed", True)
    assert Deployment.parse("/", Properties({})).enforcement.repository_verity is None


def test_what_a_daemon_does_not_serve_is_null_or_empty_but_never_a_claim() -> None:
    none = Properties({})
    assert Image.parse("/", none).bootable is None
    assert Deployment.parse("/", none).booted is None
    assert Repository.parse(none).verity is None
    assert Repository.parse(none).last_check_clean is None
    assert Boot.parse(none).esp_bytes_free is None
    assert Daemon.parse(none).jobs_running is None
    assert Job.parse("/", none).progress is None


@pytest.mark.parametrize(
    "values",
    [
        {"ManifestDigest": 7},
        {"Created": True},
        {"Names": "os"},
        {"Names": [1]},
        {"Bootable": [True]},
        {"Bootable": True},
        {"Digests": [["boot"]]},
        {"Trust": ["a", "b", []]},
    ],
)
def test_a_value_of_another_type_is_one_clear_error(values: dict[str, Value]) -> None:
    with pytest.raises(AnswerError, match="the daemon's"):
        Image.parse("/", Properties(values))


def test_an_answer_that_is_no_dictionary_or_no_rows_is_an_error() -> None:
    with pytest.raises(AnswerError):
        properties([])
    with pytest.raises(AnswerError):
        rows([["a"]], "one", "two")


def test_progress_below_zero_is_unknown() -> None:
    assert Job.parse("/", Properties({"Progress": -1.0})).progress is None
    assert Job.parse("/", Properties({"Progress": 1.5})).progress == 1.0


def test_json_of_records_has_the_fields_as_keys() -> None:
    (found,) = json.loads(to_json([Image.parse("/image", Properties(IMAGE))]))
    assert found["manifest_digest"] == "sha256:aa"
    assert found["digests"] == [
        {"kind": "boot", "format": "v1", "hash": "sha512", "block_size": 4096, "digest": "sha512:bb"}
    ]
    assert found["trust"]["state"] == "matching"
    assert found["size"] is None


def test_json_has_no_control_characters() -> None:
    text = to_json({"a": "\x1b\x7f\x9b\u202e"})
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {"a": "\x1b\x7f\x9b\u202e"}


def test_the_result_of_a_job_names_the_members_of_structs() -> None:
    result: dict[str, Value] = {
        "plan": [["write", "EFI/Linux/os.efi", 5]],
        "space": [10, 5, 4],
        "boot-digest": "sha512:bb",
    }
    assert result_json(41, result) == {
        "job": 41,
        "state": "succeeded",
        "boot_digest": "sha512:bb",
        "plan": [{"action": "write", "path": "EFI/Linux/os.efi", "bytes": 5}],
        "space": {"free_before": 10, "needed": 5, "free_after": 4},
    }


def test_a_clean_check_has_an_empty_list_of_findings() -> None:
    assert result_json(1, {"findings": [], "findings-total": 0})["findings"] == []
