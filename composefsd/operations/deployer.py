"""The deployer: what changes the boot partition, the state directories and the journal, in a worker of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from composefsd import deploy as room
from composefsd.operations.deployment_order import DeploymentOrder, deployment_tag
from composefsd.workers.serve import Call, Task

_TICK_BYTES: Final = 1 << 20


@contextmanager
def _places(call: Call) -> Iterator[room.Places]:
    """args of every task: `sysroot`, `esp`, `xbootldr` (or None), and `booted`, the digest of what runs (or None)."""
    xbootldr = call.args["xbootldr"]
    partitions = room.BootPartitions(Path(call.args["esp"]), None if xbootldr is None else Path(xbootldr))
    with room.Places.open(Path(call.args["sysroot"]), partitions) as places:
        yield places


def deploy(call: Call) -> dict[str, Any]:
    """Deploy an order.  fds: the contents whose paths are in `sources`.  args: `order`, `sources`.

    Answers with the `deployment`'s id and what is `needed`; reports `written` bytes.
    """
    order = DeploymentOrder.from_wire(call.args["order"])
    sources = dict(zip(call.args["sources"], call.fds, strict=True))
    total = told = 0

    def written(count: int) -> None:
        nonlocal total, told
        total += count
        if total - told >= _TICK_BYTES:
            told = total
            call.report({"written": total})

    with _places(call) as places:
        done = room.deploy(places, order.for_room(), sources, booted=call.args["booted"], written=written)
        return {"deployment": done.id, "needed": _needed(places)}


def remove(call: Call) -> dict[str, Any]:
    """Remove a deployment.  args: `deployment`, `state`; answers with `freed_bytes` and what is `needed`."""
    with _places(call) as places:
        booted, deployment_id = call.args["booted"], call.args["deployment"]
        removal = room.remove(places, deployment_id, booted=booted, remove_state=call.args["state"])
        return {"freed_bytes": removal.freed_bytes, "needed": _needed(places)}


def recover(call: Call) -> dict[str, Any]:
    """Settle what was interrupted; answers with what is `needed` and the `problems` that are left."""
    with _places(call) as places:
        recovery = room.recover(places, call.args["booted"])
        return {"needed": _needed(places), "problems": list(recovery.problems)}


def _needed(places: room.Places) -> dict[str, list[str]] | None:
    """The `tags` and the boot `images` (digests in hexadecimal) that deployments need, recorded or not.

    None if that cannot be told for sure.
    """
    listing = room.list_deployments(places)
    if listing.problems:
        return None
    tags = {deployment.tag for deployment in listing.deployments}
    tags |= {deployment_tag(one.manifest_digest) for one in listing.deployments if one.manifest_digest is not None}
    images = {digest.hex for one in listing.deployments for digest in (one.boot_digest, *one.aliases)}
    return {"tags": sorted(tags - {""}), "images": sorted(images)}


TASKS: Final[dict[str, Task]] = {"deploy": deploy, "remove": remove, "recover": recover}
