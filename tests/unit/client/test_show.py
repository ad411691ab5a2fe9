"""What people see."""

import io
from collections.abc import Callable

from composefsd.client import show
from composefsd.client.properties import Properties, Value
from composefsd.client.records import Boot, Daemon, Deployment, Image, Job, Problem, Repository, Status
from composefsd.client.render import Screen
from composefsd.service import names

HEX = "0123456789abcdef" * 8
IMAGE = Image.parse(
    "/image",
    Properties(
        {
            "ManifestDigest": f"sha256:{HEX[:64]}",
            "Names": ["os", "stable"],
            "Title": "Debian GNU/Linux 13",
            "Os": "linux",
            "Architecture": "amd64",
            "Size": 312_400_000,
            "LayerCount": 3,
            "Digests": [["boot", "v1", "sha512", 4096, f"sha512:{HEX}"]],
            "Trust": ["matching", "the UKI names it", {}],
            "Bootable": [False, ["no kernel", "no UKI"]],
            "BootResources": [["uki", "/boot/a.efi", "6.12", {}]],
            "Deployments": [names.deployment_path(f"{HEX}.1")],
        }
    ),
)
DEPLOYMENT = Deployment.parse(
    "/first",
    Properties(
        {
            "Id": HEX,
            "Title": "Debian",
            "State": "armed",
            "Booted": True,
            "Default": False,
            "TriesLeft": 2,
            "Type": "uki",
        }
    ),
)
JOB = Job.parse(
    "/job", Properties({"Id": 41, "Type": "pull", "State": "failed", "Description": "oci:/os", "Error": ["x", "no"]})
)


def seen(print_it: Callable[[Screen], None], width: int | None = None) -> str:
    stream = io.StringIO()
    print_it(Screen(stream, width))
    return stream.getvalue()


def test_images_are_a_table_with_whole_digests_in_a_pipe() -> None:
    lines = seen(lambda screen: show.images(screen, [IMAGE])).splitlines()
    assert lines[0].split() == ["NAME", "DIGEST", "TITLE", "ARCH", "SIZE", "CREATED", "BOOTABLE", "TRUST"]
    assert f"os, stable  sha256:{HEX[:64]}  Debian GNU/Linux 13  amd64  312 MB" in lines[1]


def test_an_artifact_is_shown_by_its_type() -> None:
    artifact = Image.parse("/image", Properties({"ArtifactType": "application/vnd.example", "LayerCount": 1}))
    assert "application/vnd.example" in seen(lambda screen: show.images(screen, [artifact]))


def test_on_a_terminal_tables_have_short_digests() -> None:
    table = seen(lambda screen: show.images(screen, [IMAGE]), 120)
    assert f"os, stable  {HEX[:12]}  Debian" in table


def test_computed_digests_are_whole_everywhere() -> None:
    computed: dict[str, Value] = {"boot-digest": f"sha512:{HEX}"}
    for width in (None, 40):
        assert seen(lambda screen: show.digests(screen, computed), width) == f"boot digest  sha512:{HEX}\n"


def test_a_deployment_shows_its_roles_and_its_tries() -> None:
    boot = Boot.parse(Properties({"RollbackTarget": "/first"}))
    text = seen(lambda screen: show.deployments(screen, [DEPLOYMENT], boot))
    assert "booted,rollback" in text
    assert "armed, 2 tries left" in text


def test_a_job_that_failed_tells_why() -> None:
    assert "oci:/os: no" in seen(lambda screen: show.jobs(screen, [JOB]))


def test_nothing_is_said_to_be_nothing() -> None:
    boot = Boot.parse(Properties({}))
    assert seen(lambda screen: show.images(screen, [])) == "no images\n"
    assert seen(lambda screen: show.jobs(screen, [])) == "no jobs\n"
    assert seen(lambda screen: show.deployments(screen, [], boot)) == "no deployments\n"


def test_status_tells_all_at_a_glance() -> None:
    repository = Properties(
        {"Path": "/sysroot/composefs", "Algorithm": "fsverity-sha512-12", "Verity": False, "ImageCount": 1}
    )
    status = Status(
        daemon=Daemon.parse(Properties({"Version": "1", "State": "idle"})),
        problems=(Problem(f"{names.ERRORS}.ReadOnly", "the repository\x1b cannot be written"),),
        repository=Repository.parse(repository),
        boot=Boot.parse(Properties({"Esp": "/efi", "EspBytesFree": 10, "EspBytesTotal": 20})),
        deployments=(DEPLOYMENT,),
        jobs=(JOB,),
    )
    lines = seen(lambda screen: show.status(screen, status)).splitlines()
    assert lines[:5] == [
        "composefsd  1, idle",
        "repository  /sysroot/composefs, fsverity-sha512-12, insecure (no verity), 1 image",
        "boot        ESP /efi, 10 B of 20 B free",
        "",
        "problem: the repository\\x1b cannot be written (ReadOnly)",
    ]
    assert any(HEX in line for line in lines)
    assert lines[-1].startswith(" 41  pull")


def test_a_result_has_the_known_before_the_unknown_and_sizes_with_units() -> None:
    result: dict[str, Value] = {
        "objects-added": 12,
        "bytes-fetched": 312_400_000,
        "manifest-digest": "sha256:aa",
        "image": "/an/object",
        "deployment": names.deployment_path("abc.1"),
    }
    assert seen(lambda screen: show.result(screen, result)).splitlines() == [
        "deployment       abc.1",
        "manifest digest  sha256:aa",
        "bytes fetched    312 MB",
        "objects added    12",
    ]


def test_a_plan_is_a_table_with_the_room_it_takes() -> None:
    result: dict[str, Value] = {"plan": [["write", "EFI/Linux/os.efi", 50_000_000]], "space": [100, 50, 50]}
    assert seen(lambda screen: show.result(screen, result)).splitlines() == [
        "ACTION  BYTES  PATH",
        "write   50 MB  EFI/Linux/os.efi",
        "needs 50 B of 100 B free, leaves 50 B",
    ]


def test_findings_are_counted_and_none_is_clean() -> None:
    found: dict[str, Value] = {"findings": [["error", "missing", "ab", "is not there"]], "findings-total": 3}
    text = seen(lambda screen: show.findings(screen, Properties(found)))
    assert text.splitlines()[1:] == ["error     missing  ab       is not there", "3 findings, 1 of them shown"]
    assert seen(lambda screen: show.findings(screen, Properties({}))) == "clean\n"


def test_a_deployment_id_comes_back_from_its_path() -> None:
    for identity in (HEX, f"{HEX}.12", "a-b_c"):
        assert show.deployment_of(names.deployment_path(identity)) == identity


def test_making_a_repository_secure_is_told_with_what_it_took() -> None:
    result: dict[str, Value] = {
        "already-secure": False, "objects-checked": 12, "objects-enabled": 10, "bytes-checked": 5_000_000,
    }  # fmt: skip
    assert seen(lambda screen: show.made_secure(screen, result)).splitlines() == [
        "the repository is secure: from now on it demands fs-verity of every object",
        "objects checked  12",
        "objects enabled  10",
        "bytes checked    5 MB",
    ]
    result["already-secure"] = True
    assert seen(lambda screen: show.made_secure(screen, result)) == "the repository was secure already\n"
