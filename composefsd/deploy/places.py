"""The directories that a deployment touches, open for as long as one operation takes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from composefsd.deploy.partitions import BootPartitions
from composefsd.deploy.state import Journal
from composefsd.deploy.volume import Step, Volume, unheard
from composefsd.errors import EspNotFoundError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Places:
    """The sysroot with journal and state, $BOOT, and the ESP (the same volume unless there is an XBOOTLDR)."""

    sysroot: Volume
    boot: Volume
    esp: Volume

    @property
    def journal(self) -> Journal:
        """The records below the sysroot."""
        return Journal(self.sysroot)

    @classmethod
    @contextmanager
    def open(cls, sysroot: Path, partitions: BootPartitions, step: Step = unheard) -> Iterator[Self]:
        """Every durable step on any of them is announced to `step` before it is made.

        Raises EspNotFoundError for a partition, and UnsupportedError for a sysroot, that is no directory.
        """
        with ExitStack() as stack:
            try:
                root = stack.enter_context(Volume.open(sysroot, step))
            except OSError as error:
                raise UnsupportedError(f"nothing can be deployed to {sysroot}: {error.strerror}") from error
            boot = stack.enter_context(_partition(partitions.boot, step))
            separate = partitions.esp != partitions.boot
            yield cls(root, boot, stack.enter_context(_partition(partitions.esp, step)) if separate else boot)


def _partition(path: Path, step: Step) -> Volume:
    try:
        return Volume.open(path, step)
    except OSError as error:
        raise EspNotFoundError(f"cannot open {path}: {error.strerror}", partition=str(path)) from error
