"""Runs one program with limits, without sockets, without new processes: the sandbox where bubblewrap is refused.

Started by path as `python -I -S jail.py [--limit name=value …] -- program argument …`, so it may import the standard
library only and must stay quick (about 20 ms). It drops rights and then *becomes* the program. A maintainer must not
break: (1) the filter refuses every system call that can reach a network, including io_uring, which can open sockets by
itself; (2) a call of a foreign architecture kills the process, or the numbers below would mean something else;
(3) threads stay allowed (codecs use them), processes not.

Source: seccomp(2), linux/audit.h, linux/filter.h; system call numbers of asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
OFFSET_NUMBER, OFFSET_ARCHITECTURE, OFFSET_FIRST_ARGUMENT = 0, 4, 16
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000

# Refused with EPERM, by architecture: (audit number, {name: number}). `clone` is refused unless it makes a thread;
# `clone3` hides its flags behind a pointer, so it "does not exist" and the C library falls back to `clone`.
_ARCHITECTURES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
            "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "ptrace": 101, "mount": 165, "keyctl": 250,
            "unshare": 272, "accept4": 288, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
            "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "pidfd_getfd": 438, "clone3": 435,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "mount": 40, "unshare": 97, "ptrace": 117, "socket": 198, "socketpair": 199, "bind": 200, "listen": 201,
            "accept": 202, "connect": 203, "sendto": 206, "sendmsg": 211, "keyctl": 219, "clone": 220,
            "accept4": 242, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280,
            "userfaultfd": 282, "io_uring_setup": 425, "pidfd_getfd": 438, "clone3": 435,
        },
    ),
}  # fmt: skip

_LIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "as": resource.RLIMIT_AS,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
}


def filter_program(machine: str) -> bytes:
    """The classic BPF program for `machine`, 8 bytes an instruction. `KeyError` for a machine it has no numbers of."""
    audit, numbers = _ARCHITECTURES[machine]
    refuse = REFUSE | errno.EPERM
    program = [
        (LOAD_WORD, 0, 0, OFFSET_ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, audit),
        (RETURN, 0, 0, KILL),
        (LOAD_WORD, 0, 0, OFFSET_NUMBER),
    ]
    if machine == "x86_64":  # the x32 calls have other numbers under the same architecture
        program += [(JUMP_IF_ANY_BIT, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    for name, number in numbers.items():
        if name == "clone":
            program += [
                (JUMP_IF_EQUAL, 0, 4, number),
                (LOAD_WORD, 0, 0, OFFSET_FIRST_ARGUMENT),
                (JUMP_IF_ANY_BIT, 1, 0, CLONE_THREAD),
                (RETURN, 0, 0, refuse),
                (RETURN, 0, 0, ALLOW),
            ]
        else:
            answer = REFUSE | errno.ENOSYS if name == "clone3" else refuse
            program += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, answer)]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def confine(limits: dict[str, int]) -> None:
    """Set limits, give up new rights, install the filter; for good. Raises `OSError` when the kernel refuses."""
    for name, value in limits.items():
        _, hard = resource.getrlimit(_LIMITS[name])
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(_LIMITS[name], (ceiling, ceiling))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = filter_program(os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    for option, *arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program)),
    ):
        if libc.prctl(option, *arguments, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")


def main(argv: list[str]) -> None:
    """Confine this process and become the program after `--`."""
    cut = argv.index("--")
    limits = dict(argument.split("=", 1) for argument in argv[:cut])
    program = argv[cut + 1 :]
    confine({name: int(value) for name, value in limits.items()})
    os.execve(program[0], program, {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})  # noqa: S606  becoming it is the point


if __name__ == "__main__":
    main(sys.argv[1:])
