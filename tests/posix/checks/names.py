"""File names: bytes of any value but / and NUL, up to NAME_MAX, in paths up to PATH_MAX."""

import errno
import os
from collections.abc import Callable

from tests.posix.check import check, each, fails, same
from tests.posix.file import read, write

NAMES = {
    "of_255_bytes": b"n" * 255,
    "of_255_bytes_above_127": b"\xff" * 255,
    "of_255_bytes_of_utf8": "ä".encode() * 127 + b"x",
    "with_every_byte_1": bytes(range(1, 128)).replace(b"/", b""),
    "with_every_byte_2": bytes(range(128, 256)),
    "not_utf8": b"\xc3\x28",
    "cut_utf8": b"\xe2\x82",
    "surrogate": b"\xed\xa0\x80",
    "latin1": b"\xe4\xf6\xfc",
    "emoji": "🦀".encode(),
    "newline": b"a\nb",
    "tab": b"\t",
    "blank": b" ",
    "trailing_blank": b"a ",
    "trailing_dot": b"a.",
    "three_dots": b"...",
    "hidden": b".hidden",
    "backslash": b"a\\b",
    "dash": b"-rf",
    "quote": b"'\"",
    "glob": b"*?[a]",
    "colon": b"a:b",
    "percent": b"%s%n",
    "control": b"\x01\x7f\x1b[0m",
}


def _linked(name: bytes) -> None:
    write(b"a")
    os.link(b"a", name)


def _renamed(name: bytes) -> None:
    write(b"a")
    os.rename(b"a", name)


MAKERS: dict[str, Callable[[bytes], object]] = {
    "file": write,
    "directory": os.mkdir,
    "symlink": lambda name: os.symlink(b"x", name),
    "fifo": os.mkfifo,
    "link": _linked,
    "rename": _renamed,
}


@each({name: (value,) for name, value in NAMES.items()})
def of_a_file(name: bytes) -> None:
    """path_resolution(7): a name is any bytes but / and NUL; it is listed as it was made, found, moved and removed: {case}."""
    write(name, b"content")
    same((os.listdir(b"."), read(name)), ([name], b"content"))
    os.mkdir("d")
    inside = os.path.join(b"d", name)
    os.rename(name, inside)
    same((os.listdir(b"d"), read(inside)), ([name], b"content"))
    os.link(inside, name)
    os.unlink(inside)
    os.mkdir(inside)
    same(os.listdir(b"d"), [name])
    os.rmdir(inside)
    os.symlink(name, inside)
    same(os.readlink(inside), name)


@each({kind: (make,) for kind, make in MAKERS.items()})
def too_long(make: Callable[[bytes], object]) -> None:
    """path_resolution(7): ENAMETOOLONG for a name of 256 bytes, not cut and not ENOENT: {case}."""
    fails(errno.ENAMETOOLONG, make, b"n" * 256)
    assert not any(name.startswith(b"n") for name in os.listdir(b"."))


@each(
    {
        "stat": (os.stat,),
        "unlink": (os.unlink,),
        "rmdir": (os.rmdir,),
        "readlink": (os.readlink,),
        "open": (lambda name: os.open(name, os.O_RDONLY),),
        "chmod": (lambda name: os.chmod(name, 0o600),),
        "rename_from": (lambda name: os.rename(name, "x"),),
    }
)
def too_long_to_exist(call: Callable[[str], object]) -> None:
    """path_resolution(7): ENAMETOOLONG also where nothing is made: {case}."""
    fails(errno.ENAMETOOLONG, call, "n" * 256)
    fails(errno.ENOENT, call, "n" * 255)


@check
def a_path_of_4095_bytes() -> None:
    """path_resolution(7): a path may have PATH_MAX - 1 bytes, however many components."""
    os.mkdir("d")
    path = "d/" + "./" * 2045 + "abc"
    same(len(path), 4095)
    write(path, b"x")
    same(read(path), b"x")


@check
def a_path_too_long() -> None:
    """path_resolution(7): ENAMETOOLONG for a path of PATH_MAX bytes."""
    os.mkdir("d")
    fails(errno.ENAMETOOLONG, write, "d/" + "./" * 2045 + "abcd")


@check
def case_matters() -> None:
    """POSIX, Filename: names are compared byte by byte."""
    for name in ("case", "Case", "CASE"):
        write(name, name.encode())
    same(sorted(os.listdir()), ["CASE", "Case", "case"])
    same(read("Case"), b"Case")


@check
def normal_forms_differ() -> None:
    """POSIX, Filename: composed and decomposed letters make different names."""
    one, two = "é", "e\u0301"
    write(one, b"one")
    write(two, b"two")
    same((read(one), read(two), len(os.listdir())), (b"one", b"two", 2))


@check
def limits_are_told() -> None:
    """pathconf(3): _PC_NAME_MAX is 255 and _PC_PATH_MAX 4096."""
    same((os.pathconf(".", "PC_NAME_MAX"), os.pathconf(".", "PC_PATH_MAX")), (255, 4096))


@check
def slashes_collapse() -> None:
    """path_resolution(7): several slashes are one."""
    os.mkdir("d")
    write("d///a", b"x")
    same(read(".//d//./a"), b"x")


@check
def absence_is_not_remembered() -> None:
    """path_resolution(7): a name that did not exist is found as soon as it is made, by whatever call."""
    write("source")
    for name, make in (
        ("a", write),
        ("b", os.mkdir),
        ("c", lambda name: os.symlink("source", name)),
        ("d", lambda name: os.link("source", name)),
        ("e", lambda name: os.rename("source", name)),
        ("f", os.mkfifo),
    ):
        fails(errno.ENOENT, os.stat, name)
        assert callable(make)
        make(name)
        os.stat(name) if name != "c" else os.lstat(name)
