"""readdir(3): listings, also while the directory changes."""

import os
import stat

from tests.posix.check import check, each, same
from tests.posix.file import later, write
from tests.posix.system import Directory

TYPES = {"file": 8, "directory": 4, "symlink": 10, "fifo": 1, "socket_node": 12}


def _fill(count: int, name: str = "name-{:04}") -> set[bytes]:
    os.mkdir("d")
    for number in range(count):
        write(f"d/{name.format(number)}")
    return {name.format(number).encode() for number in range(count)}


@each({str(count): (count,) for count in (0, 1, 10, 100, 1000)})
def finds_all(count: int) -> None:
    """readdir(3): each of {case} entries comes once, and . and .. as well."""
    wanted = _fill(count)
    names = [entry.name for entry in Directory("d")]
    same((len(names), set(names)), (count + 2, wanted | {b".", b".."}))


@check
def long_names() -> None:
    """readdir(3): names of 255 bytes come whole."""
    wanted = _fill(150, "{:04}" + "n" * 251)
    same(sorted(Directory("d").names()), sorted(wanted))


@check
def types() -> None:
    """readdir(3): d_type is the type of the file, or DT_UNKNOWN."""
    write("file")
    os.mkdir("directory")
    os.symlink("none", "symlink")
    os.mkfifo("fifo")
    os.mknod("socket_node", stat.S_IFSOCK | 0o600)
    for entry in Directory():
        if entry.name not in (b".", b".."):
            assert entry.type in (0, TYPES[entry.name.decode()]), entry


@check
def inode_numbers() -> None:
    """readdir(3): d_ino is the inode number that stat tells."""
    wanted = _fill(50)
    found = {entry.name: entry.ino for entry in Directory("d")}
    for name in wanted:
        same(found[name], os.stat(os.path.join(b"d", name)).st_ino)
    same(found[b"."], os.stat("d").st_ino)
    same(found[b".."], os.stat(".").st_ino)


@check
def goes_back_to_any_place() -> None:
    """telldir(3), seekdir(3): the stream goes on where it was told to have been, in any order."""
    _fill(200)
    stream = Directory("d")
    places, names = [], []
    while True:
        place = stream.tell()
        entry = stream.next()
        if entry is None:
            break
        places.append(place)
        names.append(entry.name)
    for index in (0, 150, 3, 199, 100, 101, 7):
        stream.seek(places[index])
        following = [entry.name for entry in stream]
        same(following, names[index:])


@check
def a_place_survives_changes() -> None:
    """seekdir(3): entries that stay are found behind a place that was told before others came and went."""
    kept = _fill(300)
    stream = Directory("d")
    first = [entry.name for _, entry in zip(range(100), stream, strict=False)]
    place = stream.tell()
    for number in range(300):
        write(f"d/new-{number:04}")
    gone = {name for name in kept if name not in first and int(name[-4:]) % 2}
    for name in gone:
        os.unlink(os.path.join(b"d", name))
    stream.seek(place)
    rest = [entry.name for entry in stream]
    missed = {name for name in kept - gone if name not in first and name not in rest}
    same(missed, set())
    same([name for name in rest if name in first], [], "entries that come twice")


@check
def rewind_sees_changes() -> None:
    """rewinddir(3): the stream refers to the state of the directory as opendir would have."""
    _fill(5)
    stream = Directory("d")
    same(len(list(stream)), 7)
    write("d/new")
    os.unlink("d/name-0002")
    stream.rewind()
    same(sorted(stream.names()), sorted([b"new", *(b"name-%04d" % number for number in (0, 1, 3, 4))]))


@check
def removing_what_was_read() -> None:
    """readdir(3): removing each entry as it comes leaves none behind, as rm -r does."""
    _fill(500)
    stream = Directory("d")
    for entry in stream:
        if entry.name not in (b".", b".."):
            os.unlink(os.path.join(b"d", entry.name))
    same(os.listdir("d"), [])
    os.rmdir("d")


@check
def renaming_what_was_read() -> None:
    """readdir(3): each entry that was there at the open and is renamed when it comes has been seen once at least."""
    wanted = _fill(300)
    seen = []
    for entry in Directory("d"):
        if entry.name in wanted:
            seen.append(entry.name)
            os.rename(os.path.join(b"d", entry.name), os.path.join(b"d", b"renamed-" + entry.name))
    same(sorted(seen), sorted(wanted))


@check
def what_stays_is_found_while_others_come() -> None:
    """readdir(3): entries that are neither added nor removed come exactly once, whatever happens beside them."""
    wanted = _fill(400)
    seen = []
    for turn, entry in enumerate(Directory("d")):
        if entry.name in wanted:
            seen.append(entry.name)
        write(f"d/beside-{turn % 50}")
        if turn % 3 == 0:
            os.unlink(f"d/beside-{turn % 50}")
        if turn > 2000:
            break
    same(sorted(seen), sorted(wanted))


@check
def sees_what_was_just_done() -> None:
    """readdir(3): a listing shows all changes that this process made before it opened the directory."""
    os.mkdir("d")
    there: set[str] = set()
    for turn in range(30):
        write(f"d/{turn}")
        there.add(f"{turn}")
        same(set(os.listdir("d")), there)
        os.rename(f"d/{turn}", f"d/moved-{turn}")
        there ^= {f"{turn}", f"moved-{turn}"}
        same(set(os.listdir("d")), there)
        if turn % 3 == 0:
            os.unlink(f"d/moved-{turn}")
            there.remove(f"moved-{turn}")
            same(set(os.listdir("d")), there)


@check
def two_streams() -> None:
    """opendir(3): streams of one directory have places of their own."""
    _fill(50)
    one, two = Directory("d"), Directory("d")
    same(len(list(one)), 52)
    same(len(list(two)), 52)


@check
def of_a_renamed_directory() -> None:
    """readdir(3): a stream stays with its directory when that is renamed."""
    wanted = _fill(300)
    stream = Directory("d")
    first = [stream.next() for _ in range(50)]
    os.rename("d", "e")
    os.mkdir("d")
    names = {entry.name for entry in first if entry} | {entry.name for entry in stream}
    same(names - {b".", b".."}, wanted)


@check
def makes_no_changes() -> None:
    """readdir(3): listing changes neither mtime nor ctime."""
    _fill(20)
    before = os.stat("d")
    later()
    os.listdir("d")
    after = os.stat("d")
    same((after.st_mtime_ns, after.st_ctime_ns), (before.st_mtime_ns, before.st_ctime_ns))
