"""Guest memory, as a VMM uses it."""

import ctypes
import gc
import mmap
import os
import weakref
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiofs import BoundsError, GuestMemory

PAGE = 4096


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.truncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


def test_regions_of_a_file(memfd: int) -> None:
    memory = GuestMemory()
    memory.add_fd(0x10000, memfd, 2 * PAGE)
    memory.add_fd(0x12000, memfd, PAGE, offset=8 * PAGE)
    assert memory.regions == [(0x10000, 2 * PAGE), (0x12000, PAGE)]
    memory.write(0x11FFE, b"abcd")
    assert memory.read(0x11FFE, 4) == b"abcd"
    assert os.pread(memfd, 2, 2 * PAGE - 2) == b"ab"
    assert os.pread(memfd, 2, 8 * PAGE) == b"cd"
    memory.remove(0x10000, 2 * PAGE)
    assert memory.regions == [(0x12000, PAGE)]
    assert memory.read(0x12000, 2) == b"cd"


def test_numbers(memfd: int) -> None:
    memory = GuestMemory()
    memory.add_fd(0, memfd, PAGE)
    for size in (1, 2, 4, 8):
        memory.store(8, (1 << 8 * size) - 2, size)
        assert memory.load(8, size) == (1 << 8 * size) - 2
        assert memory.read(8, size) == b"\xfe" + b"\xff" * (size - 1)
    for address, size, words in ((1, 2, "0x1"), (0, 3, "not 3"), (4, 8, "0x4")):
        with pytest.raises(ValueError, match=words):
            memory.load(address, size)
    with pytest.raises(ValueError, match="0x100 does not fit into 1 bytes"):
        memory.store(0, 256, 1)


def test_what_is_not_there_is_named(memfd: int) -> None:
    memory = GuestMemory()
    with pytest.raises(BoundsError, match=r"1 bytes at 0x0 .* regions are: none"):
        memory.read(0, 1)
    memory.add_fd(0x1000, memfd, PAGE)
    for act in (
        lambda: memory.read(0x1FFF, 2),
        lambda: memory.read(0x1FFF, 1 << 62),
        lambda: memory.write(0x1FFF, b"12"),
        lambda: memory.view(0x1FFF, 2),
        lambda: memory.load(0x2000, 4),
        lambda: memory.store(0x2000, 0, 4),
    ):
        with pytest.raises(BoundsError, match=r"at 0x(1fff|2000) .* 0x1000 to 0x1fff"):
            act()
    assert isinstance(BoundsError(), IndexError)
    with pytest.raises(BoundsError, match="0x3000"):
        memory.remove(0x3000, PAGE)
    with pytest.raises(ValueError, match="overlaps"):
        memory.add_fd(0x1800, memfd, PAGE)
    with pytest.raises(ValueError, match="its file has"):
        memory.add_fd(0x100000, memfd, 17 * PAGE)
    with pytest.raises(OSError, match="Bad file"):
        memory.add_fd(0x100000, 1 << 20, PAGE)
    assert memory.regions == [(0x1000, PAGE)]


def test_views_are_the_memory_itself_and_keep_it(memfd: int) -> None:
    memory = GuestMemory()
    memory.add_fd(0, memfd, 2 * PAGE)
    view = memory.view(16, 8)
    assert (view.nbytes, view.readonly, view.format) == (8, False, "B")
    view[:4] = b"view"
    assert memory.read(16, 4) == b"view"
    memory.write(20, b"more")
    assert bytes(view) == b"viewmore"
    memory.remove(0, 2 * PAGE)
    del memory
    gc.collect()
    view[0:1] = b"V"
    assert os.pread(memfd, 8, 16) == b"Viewmore"


def test_a_buffer_is_kept_until_its_last_use() -> None:
    class Owner(mmap.mmap):
        """An mmap that can be watched."""

    buffer = Owner(-1, 2 * PAGE)
    gone = weakref.ref(buffer)
    memory = GuestMemory()
    memory.add_buffer(0x8000, buffer)
    buffer[5:9] = b"seen"
    assert memory.read(0x8005, 4) == b"seen"
    memory.write(0x8005, b"SEEN")
    assert buffer[5:9] == b"SEEN"
    with pytest.raises(BufferError):
        buffer.close()
    view = memory.view(0x8005, 4)
    del buffer
    memory.remove(0x8000, 2 * PAGE)
    gc.collect()
    assert gone() is not None
    assert bytes(view) == b"SEEN"
    view.release()
    del view
    gc.collect()
    assert gone() is None


def test_what_cannot_be_guest_memory() -> None:
    memory = GuestMemory()
    with pytest.raises((BufferError, ValueError)):
        memory.add_buffer(0, bytes(PAGE))
    with pytest.raises(ValueError, match="no multiple of 4096"):
        memory.add_buffer(0, memoryview(mmap.mmap(-1, 2 * PAGE))[8:])
    with pytest.raises(TypeError):
        memory.add_buffer(0, "text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no bytes"):
        memory.add_mapped(0, PAGE, 0)
    assert memory.regions == []


def test_memory_by_its_address() -> None:
    mapped = mmap.mmap(-1, PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    memory = GuestMemory()
    memory.add_mapped(1 << 40, address, PAGE)
    memory.write(1 << 40, b"by address")
    assert mapped[:10] == b"by address"


def test_written_pages(memfd: int) -> None:
    memory = GuestMemory(track_dirty=True)
    memory.add_fd(0, memfd, 4 * PAGE)
    memory.add_fd(0x100000, memfd, PAGE)
    assert memory.dirty() == []
    memory.write(PAGE - 1, b"12")
    memory.store(0x100000, 1, 8)
    assert memory.dirty(clear=False) == [(0, 2 * PAGE), (0x100000, PAGE)]
    assert memory.dirty() == [(0, 2 * PAGE), (0x100000, PAGE)]
    assert memory.dirty() == []


@given(
    regions=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=8),
    address=st.integers(0, 50 * PAGE),
    data=st.binary(max_size=3 * PAGE),
)
def test_reads_and_writes_are_whole_or_not_at_all(regions: list[tuple[int, int]], address: int, data: bytes) -> None:
    model: dict[int, int] = {}
    memory = GuestMemory()
    for page, pages in regions:
        wanted = range(page, page + pages)
        try:
            memory.add_buffer(page * PAGE, mmap.mmap(-1, pages * PAGE))
        except ValueError:
            assert any(page in model for page in wanted)
        else:
            assert not any(page in model for page in wanted)
            model |= dict.fromkeys(wanted, pages)
    inside = all(at // PAGE in model for at in {*range(address, address + len(data), 64), address + len(data) - 1})
    if inside or not data:
        memory.write(address, data)
        assert memory.read(address, len(data)) == data
    else:
        with pytest.raises(BoundsError):
            memory.write(address, data)
