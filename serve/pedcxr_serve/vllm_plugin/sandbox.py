"""Take from a decoder process what it does not need: network, other processes, and all files but Python's libraries.

A decoder in C that a hostile film has taken over can then return wrong pixels of that film, and nothing else. Nothing
here needs privileges. Linux only, on x86-64 and ARM64.

============  ==========================================================================  ======================
mechanism     what it denies                                                              available
============  ==========================================================================  ======================
seccomp       sockets, new programs, signals to and memory of other processes             everywhere, also in
                                                                                          containers
Landlock      files outside Python's folders, /proc included; writing anywhere            Linux 5.13 and later,
                                                                                          where enabled
============  ==========================================================================  ======================
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION_FLAG, _LANDLOCK_PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3

# linux/seccomp.h and linux/bpf_common.h
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # _DENY: EPERM
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32 = 0x40000000  # x86-64 has these numbers for a second ABI

_DENIED = (
    "socket", "socketpair", "bind", "listen", "accept", "accept4", "connect", "execve", "execveat", "ptrace",
    "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "tkill",
    "io_uring_setup", "open_by_handle_at", "bpf", "perf_event_open", "userfaultfd", "unshare", "setns", "mount",
    "keyctl", "add_key", "request_key",
)  # fmt: skip
_ONLY_SELF = ("kill", "tgkill")  # allowed with the own process id as the first argument, as abort() needs it
_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "execve": 59,
        "kill": 62, "ptrace": 101, "mount": 165, "tkill": 200, "tgkill": 234, "add_key": 248, "request_key": 249,
        "keyctl": 250, "unshare": 272, "accept4": 288, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "execveat": 322, "userfaultfd": 323,
        "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438,
    }),
    "aarch64": (0xC00000B7, {
        "mount": 40, "unshare": 97, "ptrace": 117, "kill": 129, "tkill": 130, "tgkill": 131, "socket": 198,
        "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "add_key": 217,
        "request_key": 218, "keyctl": 219, "execve": 221, "perf_event_open": 241, "accept4": 242,
        "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280,
        "execveat": 281, "userfaultfd": 282, "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434,
        "pidfd_getfd": 438,
    }),
}  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def enter() -> tuple[str, ...]:
    """Restrict this process and its threads for ever; return the names of the mechanisms that the kernel offers."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return ()
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return ()
    mechanisms = (("landlock", _restrict_files(_library_folders())), ("seccomp", _restrict_calls()))
    return tuple(name for name, works in mechanisms if works)


def hide_process() -> None:
    """Let no other process of this user read this one's memory and environment, which hold keys. No core dump either.

    Linux only: ``/proc/PID/environ`` and ``ptrace`` then need CAP_SYS_PTRACE.
    """
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _library_folders() -> list[Path]:
    """Return the folders from which Python may still import."""
    folders = [sys.prefix, sys.base_prefix, *sys.path, "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"]
    return [path for path in map(Path, dict.fromkeys(folders)) if path.is_absolute() and path.exists()]


def _restrict_files(readable: Iterable[Path]) -> bool:
    libc = _libc()
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION_FLAG)
    if version < 1:
        return False
    # linux/landlock.h: the rights of version 1, then REFER, TRUNCATE and IOCTL_DEV; TCP; abstract sockets and signals.
    rights = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    attributes = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        for path in readable:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access = _READ_FILE | (_READ_DIR if path.is_dir() else 0)
            rule = struct.pack("=Qi", access, folder)
            libc.syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_PATH_BENEATH, rule, 0)
            os.close(folder)
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _restrict_calls() -> bool:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _filter(platform.machine(), os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    return bool(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _filter(machine: str, pid: int) -> list[tuple[int, int, int, int]]:
    """Return a program of classic BPF as (code, jump if true, jump if false, operand)."""
    architecture, numbers = _CALLS[machine]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32),
        (_RETURN, 0, 0, _DENY),
    ]
    for name in _DENIED:
        program += [(_JUMP_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _DENY)]
    for name in _ONLY_SELF:
        program += [
            (_JUMP_EQUAL, 0, 4, numbers[name]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            (_JUMP_EQUAL, 1, 0, pid),
            (_RETURN, 0, 0, _DENY),
            (_RETURN, 0, 0, _ALLOW),
        ]
    return [*program, (_RETURN, 0, 0, _ALLOW)]
