"""flock as `with` blocks, between descriptions of one directory and between processes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from composefsd.errors import LockedError
from composefsd.linux import lock

HOLDER = """
import os, sys
from composefsd.linux import lock
with lock.exclusive(os.open(sys.argv[1], os.O_RDONLY)):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two open descriptions of one directory."""
    first, second = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    yield first, second
    os.close(first)
    os.close(second)


def test_shared_locks_go_together(owners: tuple[int, int]) -> None:
    with lock.shared(owners[0], timeout=0), lock.shared(owners[1], timeout=0):
        pass


def test_an_exclusive_lock_keeps_all_others_out(owners: tuple[int, int]) -> None:
    for take in (lock.shared, lock.exclusive):
        with lock.exclusive(owners[0]), pytest.raises(LockedError), take(owners[1], timeout=0):
            pass
        with lock.exclusive(owners[1], timeout=0):
            pass


def test_two_descriptions_are_two_owners_even_within_one_process(owners: tuple[int, int]) -> None:
    with lock.shared(owners[0]), pytest.raises(LockedError), lock.exclusive(owners[1], timeout=0.02):
        pass


def test_the_lock_is_released_when_the_block_fails(owners: tuple[int, int]) -> None:
    with pytest.raises(KeyError), lock.exclusive(owners[0]):
        raise KeyError
    with lock.exclusive(owners[1], timeout=0):
        pass


def test_waiting_ends_when_the_holder_lets_go(owners: tuple[int, int]) -> None:
    with ExitStack() as held:
        held.enter_context(lock.exclusive(owners[0]))
        timer = threading.Timer(0.05, held.pop_all().close)
        timer.start()
        with lock.shared(owners[1], timeout=10):
            pass
        timer.join()


def test_waiting_ends_after_the_timeout(owners: tuple[int, int]) -> None:
    start = time.monotonic()
    with (
        lock.exclusive(owners[0]),
        pytest.raises(LockedError, match=r"0\.05 s"),
        lock.shared(owners[1], timeout=0.05),
    ):
        pass
    assert 0.05 <= time.monotonic() - start < 5


def test_another_process_that_dies_lets_go(tmp_path: Path, owners: tuple[int, int]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError), lock.shared(owners[0], timeout=0):
            pass
        holder.kill()
        with lock.exclusive(owners[0], timeout=10):
            pass
