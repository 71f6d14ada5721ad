"""Which system calls a serving process may make: plain lists for `virtiofs.sandbox`.

Calls that guests cause all the time are allowed without a look at their arguments, which the kernel remembers per number.
"""

import errno
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

Condition: TypeAlias = tuple[int, int, int]
"""An argument by number from 0, a mask, and what the argument is under it."""

Call: TypeAlias = tuple[str, list[Condition]]
"""A system call by name, and what its arguments must be; calls of one name add up."""

Answer: TypeAlias = Literal["allow", "log", "trap", "kill"] | int
"""What happens to a call; a number is the errno that it gets."""

Filter: TypeAlias = tuple[list[Call], Answer, Answer]
"""What is listed, what happens to that, and what to everything else."""


def _words(text: str) -> list[str]:
    return text.split()


_ALL: Final = (1 << 64) - 1
_INT: Final = (1 << 32) - 1

_FILES: Final = _words("""
    close close_range copy_file_range dup dup3 faccessat faccessat2 fadvise64 fallocate fchmod fchmodat fchmodat2 fchown
    fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate getdents64 getxattr
    getxattrat lgetxattr linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr mkdirat mknodat name_to_handle_at
    newfstatat openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlinkat readv removexattr
    removexattrat renameat renameat2 setxattr setxattrat splice statfs statx symlinkat sync_file_range syncfs umask unlinkat
    utimensat write writev
""")

_OWNERS: Final = _words("""
    capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgroups
""")

_MEMORY: Final = _words("brk madvise membarrier memfd_create mincore mremap msync munmap")

_THREADS: Final = _words("""
    arch_prctl clock_getres clock_gettime clock_nanosleep exit exit_group futex futex_requeue futex_wait futex_waitv futex_wake
    getcpu getcwd getpid getppid getrandom getrusage gettid gettimeofday nanosleep restart_syscall rseq rt_sigaction
    rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield set_robust_list sigaltstack sysinfo tgkill uname
""")

_EVENTS: Final = _words("""
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 inotify_add_watch inotify_init1 inotify_rm_watch pipe2
    poll ppoll pselect6 select timerfd_create timerfd_settime
""")

_SOCKETS: Final = _words("""
    accept accept4 getpeername getsockname getsockopt recvfrom recvmsg sendmsg sendto setsockopt shutdown socketpair
""")

_CLONE_FS: Final = 0x200
_CLONE_THREAD: Final = 0x10000
_PROT_EXEC: Final = 0x4
_IOCTLS: Final = (
    0x80086601,  # FS_IOC_GETFLAGS: what `BlockIoctl` of rust/hostdir passes on, and what std and Python ask of descriptors
    0x40086602,  # FS_IOC_SETFLAGS
    0x801C581F,  # FS_IOC_FSGETXATTR
    0x401C5820,  # FS_IOC_FSSETXATTR
    0x5401,  # TCGETS
    0x541B,  # FIONREAD
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
)
_PRCTLS: Final = (
    15,  # PR_SET_NAME
    16,  # PR_GET_NAME
    23,  # PR_CAPBSET_READ
    0x53564D41,  # PR_SET_VMA
)

_NARROW: Final[list[Call]] = [
    ("clone", [(0, _CLONE_THREAD, _CLONE_THREAD)]),
    ("mmap", [(2, _PROT_EXEC, 0)]),
    ("mprotect", [(2, _PROT_EXEC, 0)]),
    ("prlimit64", [(2, _ALL, 0)]),  # asks, sets nothing
    ("unshare", [(0, _INT, _CLONE_FS)]),
    *(("ioctl", [(1, _INT, request)]) for request in _IOCTLS),
    *(("prctl", [(0, _INT, option)]) for option in _PRCTLS),
]
"""What is allowed with some arguments only. Nothing becomes executable, no process starts."""

NATIVE: Final[list[Call]] = [
    *((name, []) for name in (*_FILES, *_OWNERS, *_MEMORY, *_THREADS, *_EVENTS, *_SOCKETS)),
    *_NARROW,
]
"""All that serving a directory takes, from the first guest to the end of the process."""

KERNEL: Final[list[Call]] = [
    (name, [])
    for name in _words("""
    acct add_key adjtimex bpf chroot clock_adjtime clock_settime delete_module finit_module fspick init_module
    io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_load keyctl lookup_dcookie migrate_pages
    modify_ldt mount mount_setattr move_mount move_pages nfsservctl open_tree open_tree_attr perf_event_open personality
    pidfd_getfd pivot_root process_vm_readv process_vm_writev ptrace quotactl reboot request_key setdomainname sethostname
    setns settimeofday swapoff swapon syslog umount2 uselib userfaultfd vhangup
""")
]
"""What no file system needs, however it is written: other processes, the host's set-up, seldom used parts of the kernel."""


MOUNTS: Final[list[Call]] = [
    *((name, []) for name in ("fsconfig", "fsmount", "fsopen")),
    ("ioctl", [(1, _INT, 0x4010E501)]),  # FUSE_DEV_IOC_BACKING_OPEN
    ("ioctl", [(1, _INT, 0x4004E502)]),  # FUSE_DEV_IOC_BACKING_CLOSE
]
"""What files without an end take, by which ends of files are mapped (rust/device/src/vhost_user/endless.rs)."""


def native(action: Answer, *, file_handles: bool, mounts: bool = False) -> list[Filter]:
    """Returns the filters for a process that serves directories: an allow list.

    Args:
        action: What happens to calls that are not on it.
        file_handles: Whether files may be opened by handle; EPERM otherwise.
        mounts: Whether `MOUNTS` may be made; EPERM otherwise.
    """
    # The C library makes threads with clone3, whose flags lie in memory where no filter can read; told that there is none, it
    # takes clone.
    refused: list[Filter] = [([("clone3", [])], errno.ENOSYS, "allow"), *_refused(file_handles, mounts)]
    # The allow list is the last: it does not allow another filter to be applied.
    return [*refused, ([*NATIVE, *MOUNTS, ("clone3", []), ("open_by_handle_at", [])], "allow", action)]


def python(action: Answer, *, file_handles: bool, mounts: bool = False) -> list[Filter]:
    """Returns the filters for a process that runs Python methods for guests.

    Args:
        action: What happens to calls that are in `KERNEL`; all others are allowed.
        file_handles: Whether files may be opened by handle; EPERM otherwise.
        mounts: Whether `MOUNTS` may be made; EPERM otherwise.
    """
    return [*_refused(file_handles, mounts), (KERNEL, action, "allow")]


def _refused(file_handles: bool, mounts: bool) -> list[Filter]:
    """Returns the filters of what is tried, and gone without where it is refused."""
    calls: list[Call] = [] if mounts else [*MOUNTS]
    if not file_handles:
        calls.append(("open_by_handle_at", []))
    return [(calls, errno.EPERM, "allow")] if calls else []


def names(calls: Iterable[Call]) -> set[str]:
    """Returns the names of `calls`."""
    return {name for name, _ in calls}
