"""Names on the bus, each written once: they are API.

An object's path is made from what it stands for, as the functions tell.
"""

import re
from typing import Final

from composefsd.digests import OciDigest

BUS_NAME: Final = "org.composefs.Composefs1"
ROOT_PATH: Final = "/org/composefs/Composefs1"
ERRORS: Final = f"{BUS_NAME}.Error"

MANAGER: Final = f"{BUS_NAME}.Manager"
REPOSITORY: Final = f"{BUS_NAME}.Repository"
BOOT: Final = f"{BUS_NAME}.Boot"
IMAGE: Final = f"{BUS_NAME}.Image"
JOB: Final = f"{BUS_NAME}.Job"
DEPLOYMENT: Final = f"{BUS_NAME}.Deployment"

INTERFACES: Final = (MANAGER, REPOSITORY, BOOT, IMAGE, JOB, DEPLOYMENT)

FREEDESKTOP: Final = "org.freedesktop.DBus"
FREEDESKTOP_PATH: Final = "/org/freedesktop/DBus"
FREEDESKTOP_ERRORS: Final = f"{FREEDESKTOP}.Error"
INTROSPECTABLE: Final = f"{FREEDESKTOP}.Introspectable"
PEER: Final = f"{FREEDESKTOP}.Peer"
PROPERTIES: Final = f"{FREEDESKTOP}.Properties"
OBJECT_MANAGER: Final = f"{FREEDESKTOP}.ObjectManager"

NO_OBJECT: Final = "/"
"""What a property of type `o` says where there is no object."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9]")


def escape(text: str) -> str:
    """`text` as part of an object path: every byte outside `[A-Za-z0-9]` becomes `_xx`, as sd-bus labels do."""
    return "".join(chr(byte) if _PLAIN.match(chr(byte)) else f"_{byte:02x}" for byte in text.encode())


def image_path(manifest: OciDigest) -> str:
    """The path of an Image object: `…/image/sha256_<hex>`."""
    return f"{ROOT_PATH}/image/{manifest.algorithm}_{manifest.hex}"


def job_path(job_id: int) -> str:
    """The path of a Job object: `…/job/_<decimal>`."""
    return f"{ROOT_PATH}/job/_{job_id}"


def deployment_path(deployment_id: str) -> str:
    """The path of a Deployment object: `…/deployment/_<escaped id>`."""
    return f"{ROOT_PATH}/deployment/_{escape(deployment_id)}"


def unescape(label: str) -> str:
    """The text that `escape` was given; what is no escape stays as it is."""
    data = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), label.encode())
    return data.decode(errors="replace")
