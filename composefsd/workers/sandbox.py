"""What a worker that reads hostile bytes gives up before it reads the first of them.

In this order, each step for what the others leave open: no new privileges; a network namespace of its own; the user
`nobody` and no groups, if it was root; no file but beneath the directories it was given (Landlock), where it may read
what others own; no sockets, no programs, no other processes (seccomp); bounded memory, descriptors and time.  What
the running kernel or an outer sandbox does not offer is reported, never taken for granted: `enter` answers with the
names of the fences that stand.

Sources: landlock(7), seccomp(2), capabilities(7), linux/landlock.h, linux/seccomp.h, linux/filter.h, linux/audit.h,
linux/capability.h.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NOBODY: Final = 65534
_LIMITS: Final = {
    resource.RLIMIT_AS: 4 << 30,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_CPU: 1800,  # seconds, then the kernel kills: some hostile patterns would never end
    resource.RLIMIT_FSIZE: 2 << 30,  # images and columns have at most 1 GiB
    resource.RLIMIT_NOFILE: 512,
    resource.RLIMIT_NPROC: 0,  # fork is the clone call that threads need, too, so the filter cannot deny it
}

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_KEEPCAPS: Final = 8
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_CAP_DAC_READ_SEARCH: Final = 1 << 2
_SIGKILL: Final = 9
_CLONE_NEWNET: Final = 0x4000_0000

_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_ALL: Final = (1 << 13) - 1
"""Every access right of the first version of Landlock's interface, from EXECUTE to MAKE_SYM."""
_LANDLOCK_READ: Final = (1 << 2) | (1 << 3)
"""READ_FILE and READ_DIR."""
_LANDLOCK_PATH_BENEATH: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Machine:
    """A machine's audit number, and the system calls that a fenced worker must not make."""

    audit: int
    denied: tuple[int, ...]


# socket, connect, bind (not sendto: the control socket answers through it); fork, vfork, execve, execveat, clone3;
# ptrace, process_vm_readv, process_vm_writev; open_by_handle_at, which leads out of a directory; mount, umount2,
# unshare, setns, bpf, keyctl, add_key, request_key, perf_event_open, userfaultfd, io_uring_setup; kill, tgkill,
# tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_open, pidfd_getfd, pidfd_send_signal, prlimit64, process_madvise,
# process_mrelease
_MACHINES: Final = {
    "x86_64": _Machine(
        0xC000003E,
        (41, 42, 49, 57, 58, 59, 322, 435, 101, 310, 311, 304, 165, 166, 272, 308, 321, 250, 248, 249, 298, 323, 425,
         62, 234, 200, 129, 297, 434, 438, 424, 302, 440, 448),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        (198, 203, 200, 221, 281, 435, 117, 270, 271, 265, 40, 39, 97, 268, 280, 219, 217, 218, 241, 282, 425, 129,
         131, 130, 138, 240, 434, 438, 424, 261, 440, 448),
    ),
}  # fmt: skip


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def enter(readable: Sequence[int] = ()) -> tuple[str, ...]:
    """Fence this process in; `readable` are directory descriptors beneath which it may still open files to read.

    Everything that it will import has to be imported already.  Answers with the names of the fences that stand, of
    `no-new-privileges`, `network`, `user`, `files` and `system-calls`.
    """
    fences = {
        "no-new-privileges": _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
        "network": _libc.unshare(_CLONE_NEWNET) == 0,
        "user": _become_nobody(keeps_reading=bool(readable)),
        "files": _restrict_files(readable),
    }
    if not fences["files"]:
        _set_capabilities(0)
    for limit, value in _LIMITS.items():
        resource.setrlimit(limit, (value, value))
    fences["system-calls"] = _restrict_calls()  # the last: it denies the call that sets limits
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    die_with_parent()  # a change of user clears it
    return tuple(name for name, stands in fences.items() if stands)


def _become_nobody(*, keeps_reading: bool) -> bool:
    """Change to an ordinary user; one who `keeps_reading` may read any file, as objects may be for root alone."""
    if os.geteuid() != 0:
        return False
    try:
        os.setgroups(())
        if keeps_reading:
            _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except PermissionError:  # a container without CAP_SETUID: root still, but with no more than it needs
        _set_capabilities(_CAP_DAC_READ_SEARCH if keeps_reading else 0)
        return False
    if not keeps_reading or not _set_capabilities(_CAP_DAC_READ_SEARCH):
        _set_capabilities(0)
    return True


def _set_capabilities(wanted: int) -> bool:
    """Keep these capabilities, a bit set, and no others."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    return bool(_libc.capset(header, struct.pack("<6I", wanted, wanted, 0, 0, 0, 0)) == 0)


def _restrict_files(readable: Sequence[int]) -> bool:
    attributes = struct.pack("<Q", _LANDLOCK_ALL)
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for directory in readable:
            rule = struct.pack("<Qi", _LANDLOCK_READ, directory)
            if _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0) != 0:
                return False
        return bool(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _filter(machine: _Machine) -> bytes:
    """A classic BPF program: another architecture is killed, a denied call answers EPERM, everything else passes."""
    load, equal, not_less, answer = 0x20, 0x15, 0x35, 0x06
    count = len(machine.denied)
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, machine.audit),
        (answer, 0, 0, 0x8000_0000),  # SECCOMP_RET_KILL_PROCESS
        (load, 0, 0, 0),  # seccomp_data.nr
        (not_less, count + 1, 0, 0x4000_0000),  # the x32 numbers of x86_64, which would be another way in
        *((equal, count - index, 0, call) for index, call in enumerate(machine.denied)),
        (answer, 0, 0, 0x7FFF_0000),  # SECCOMP_RET_ALLOW
        (answer, 0, 0, 0x0005_0001),  # SECCOMP_RET_ERRNO, EPERM
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in program)


def _restrict_calls() -> bool:
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    code = ctypes.create_string_buffer(_filter(machine))
    lines = (len(code) - 1) // 8
    program = struct.pack("<HxxxxxxQ", lines, ctypes.addressof(code))
    return bool(_libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0) == 0)
