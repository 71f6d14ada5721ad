"""The device inside a VMM: what may be asked of it when, and what becomes of it."""

import gc
import mmap
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.driver import GETATTR, VERSION_1, Ring, accesses, ask, init, request, start_by_registers
from virtiofs import Device, GuestMemory, MmioTransport, Passthrough, Queue, StateError, Workers
from virtiofs.testing import Guest

PATIENCE = 10


class Machine:
    """A device with a hiprio and a request queue in memory of its own."""

    def __init__(self, fs: Passthrough, memory: GuestMemory | None = None, **options: Any) -> None:
        self.memory = memory or GuestMemory()
        if not self.memory.regions:
            self.memory.add_buffer(0x10000, mmap.mmap(-1, 0x10000))
        self.device = Device(fs, "test", self.memory, **options)
        self.hiprio, self.ring = Ring(self.memory, 0x10000), Ring(self.memory, 0x14000)

    def start(self, **more: Any) -> None:
        self.device.start(VERSION_1, [self.hiprio.queue(), self.ring.queue(call=self.ring.interrupted.set, **more)])

    def ask(self, request: bytes) -> bytes:
        """Puts a request, notifies, and waits for its reply."""
        return ask(self.device, self.ring, request)

    def wait(self, before: int) -> None:
        self.ring.wait(before)


@pytest.fixture
def machine(share: Path) -> Iterator[Machine]:
    machine = Machine(Passthrough(share), dax_window="8M")
    yield machine
    machine.device.close()


@contextmanager
def refused(*words: str) -> Iterator[None]:
    with pytest.raises(StateError) as caught:
        yield
    text = str(caught.value)
    assert all(word in text for word in words), text


def test_what_a_device_says_of_itself(machine: Machine) -> None:
    device = machine.device
    assert (device.device_id, device.queue_count, device.state) == (26, 2, "ready")
    assert device.features & VERSION_1
    assert device.read_config(0, 42) == b"test".ljust(36, b"\0") + b"\1\0\0\0" + b"\0\0"
    assert device.read_config(38, 4) == bytes(4)
    with pytest.raises(PermissionError, match="read-only"):
        device.write_config(0, b"other")
    assert (device.accepted_features, device.queues) == (0, [])


def test_interrupts_by_function(machine: Machine) -> None:
    machine.start()
    before = threading.active_count()
    assert len(machine.ask(init())) == 80
    assert machine.ring.interrupted.wait(PATIENCE)
    assert machine.ring.error() == 0
    assert threading.active_count() >= before
    assert machine.device.stats().requests == {"INIT": 1}


def test_interrupts_and_kicks_by_eventfd(machine: Machine) -> None:
    kick, call = os.eventfd(0), os.eventfd(0)
    queue = machine.ring.queue(kick=kick, call=call)
    machine.device.start(VERSION_1, [machine.hiprio.queue(), queue])
    for count in range(1, 4):
        machine.ring.put(init())
        os.eventfd_write(kick, 1)
        assert select.select([call], [], [], PATIENCE)[0], "no interrupt"
        assert (os.eventfd_read(call), machine.ring.used()) == (1, count)
    # What was handed over were copies.
    os.close(kick)
    os.close(call)
    assert len(machine.ask(init())) == 80


def test_a_function_that_fails_or_closes_the_device(machine: Machine) -> None:
    failures: list[Any] = []
    closed = threading.Event()
    hook, sys.unraisablehook = sys.unraisablehook, failures.append
    try:

        def call() -> None:
            if failures:
                machine.device.close()
                closed.set()
            raise KeyError("in the interrupt")

        machine.device.start(VERSION_1, [machine.hiprio.queue(), machine.ring.queue(call=call)])
        machine.ask(init())
        deadline = time.monotonic() + PATIENCE
        while not failures:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        machine.ask(init())
        assert closed.wait(PATIENCE)
        assert machine.device.state == "closed"
    finally:
        machine.device.close()
        sys.unraisablehook = hook
    assert isinstance(failures[0].exc_value, KeyError)


def test_misuse_says_what_is_and_what_must_be(machine: Machine) -> None:
    device = machine.device
    with refused("ready", "pause", "running"):
        device.pause()
    with refused("ready", "resume", "paused"):
        device.resume()
    with refused("ready", "notified", "running or paused"):
        device.notify(0)
    with pytest.raises(ValueError, match="VERSION_1"):
        device.start(0, [])
    with pytest.raises(ValueError, match="0x8000000000000000 were not offered"):
        device.start(VERSION_1 | 1 << 63, [])
    with pytest.raises(ValueError, match="queue 2 is none of this device, which has 2"):
        device.start(VERSION_1, [Queue(size=8, desc=0x10000, avail=0x10400, used=0x10800)] * 3)
    machine.start()
    with refused("running", "start", "ready"):
        machine.start()
    for queue in (2, 1 << 40):
        with pytest.raises(ValueError, match="which has 2"):
            device.notify(queue)
    device.close()
    device.close()
    for act in (device.pause, device.resume, device.reset, machine.start, lambda: device.notify(0)):
        with refused("closed"):
            act()


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": 12}, {"desc": 0x10001}, {"avail": 0}, {"used": 0x9000_0000}, {"desc": 0x1FFF0}],
    ids=str,
)
def test_a_queue_that_cannot_be(machine: Machine, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="queue 1 cannot start: "):
        machine.device.start(VERSION_1, [machine.hiprio.queue(), machine.ring.queue(**wrong)])
    assert machine.device.state == "ready"
    machine.start()
    assert len(machine.ask(init())) == 80


def test_numbers_that_do_not_fit(machine: Machine) -> None:
    for wrong in ({"size": 1 << 20}, {"size": -8}, {"desc": 1 << 64}, {"next": 70000}):
        with pytest.raises(OverflowError):
            machine.device.start(VERSION_1, [machine.hiprio.queue(), machine.ring.queue(**wrong)])
    with pytest.raises(OSError, match="Bad file"):
        machine.device.start(VERSION_1, [machine.hiprio.queue(kick=1 << 20)])
    with pytest.raises(OverflowError):
        machine.device.notify(-1)
    assert machine.device.state == "ready"


def test_a_paused_device_touches_nothing_and_goes_on(machine: Machine) -> None:
    machine.start()
    machine.ask(init())
    machine.device.pause()
    assert [queue.next for queue in machine.device.queues] == [0, 1]
    before = machine.memory.read(0x10000, 0x10000)
    machine.device.notify(1)
    time.sleep(0.02)
    assert machine.memory.read(0x10000, 0x10000) == before
    machine.ring.put(request(GETATTR, 1, bytes(16)))
    machine.device.notify(1)
    time.sleep(0.02)
    assert machine.ring.used() == 1
    machine.device.resume()
    machine.wait(1)
    assert (len(machine.ring.reply()), machine.ring.error()) == (120, 0)


def test_reset_ends_the_session_and_a_new_one_may_begin(machine: Machine) -> None:
    for _ in range(3):
        machine.memory.write(0x10000, bytes(0x8000))
        machine.start()
        # Outside of a session there is nothing but EIO.
        machine.ask(request(GETATTR, 1, bytes(16)))
        assert machine.ring.error() == -5
        machine.ask(init())
        machine.ask(request(GETATTR, 1, bytes(16)))
        assert machine.ring.error() == 0
        machine.device.reset()
        assert (machine.device.state, machine.device.queues) == ("ready", [])


def test_written_pages_are_what_the_device_wrote(share: Path) -> None:
    memory = GuestMemory(track_dirty=True)
    machine = Machine(Passthrough(share), memory)
    with machine.device:
        machine.start()
        machine.ask(init())
        machine.device.pause()
        memory.dirty()
        machine.device.resume()
        machine.ask(request(GETATTR, 1, bytes(16)))
        machine.device.pause()
        pages = {page for start, size in memory.dirty() for page in range(start, start + size, 4096)}
        # The request was written by us; the rest of what lies in these pages by the device.
        assert pages >= {0x10000, 0x14000, 0x16000}
        assert pages <= {0x10000, 0x14000, 0x15000, 0x16000}


def test_memory_comes_and_goes_while_the_device_runs(machine: Machine) -> None:
    machine.start()
    machine.ask(init())
    for _ in range(50):
        machine.memory.add_buffer(0x100000, mmap.mmap(-1, 0x4000))
        machine.ask(request(GETATTR, 1, bytes(16)))
        assert machine.ring.error() == 0
        machine.memory.remove(0x100000, 0x4000)


def test_shared_threads_are_bounded() -> None:
    assert Workers().threads == 1
    for wrong in (0, 1025):
        with pytest.raises(ValueError, match="threads are 1 to 1024"):
            Workers(wrong)
        with pytest.raises(ValueError, match="threads are 1 to 1024"):
            Workers(slow_threads=wrong)
    workers = Workers()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with refused("forked"):
                Device(Passthrough("/"), "test", GuestMemory(), workers=workers)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_devices_share_a_file_system_and_memory(share: Path) -> None:
    fs = Passthrough(share)
    with Guest(fs, way="device") as one, Guest(fs, way="registers") as two:
        one.write_file("new", b"from one")
        assert two.read_file("new") == b"from one"
        one.close()
        assert two.read_file("hello")


def test_a_guest_takes_a_device_over_from_the_one_before(share: Path) -> None:
    with Device(Passthrough(share), "shared", GuestMemory(), request_queues=2) as device:
        for number in range(3):
            with Guest(device, request_queues=2) as guest:
                guest.write_file(str(number), b"")
                assert (device.state, len(device.queues)) == ("running", 3)
                assert guest.device is device
            assert device.state == "paused"
        device.reset()
        for number in range(3):
            registers = MmioTransport(device)
            with Guest(registers) as guest:
                assert str(number) in guest.listdir()
            assert device.state == "ready"
        assert device.memory.regions == []


def test_registers(machine: Machine) -> None:
    interrupts = os.eventfd(0, os.EFD_NONBLOCK)
    registers = MmioTransport(machine.device, interrupts)
    machine.device.place_window(1 << 40)
    get, put = accesses(registers)
    assert (get(0x000), get(0x004), get(0x008)) == (0x74726976, 2, 26)
    start_by_registers(registers, machine.hiprio, machine.ring)
    assert (get(0x070), machine.device.state) == (15, "running")
    machine.ring.put(init())
    put(0x050, 1)
    machine.wait(0)
    assert select.select([interrupts], [], [], PATIENCE)[0]
    assert registers.interrupt_status == get(0x060) == 1
    put(0x064, 1)
    assert get(0x060) == 0
    machine.ring.put(request(GETATTR, 1, bytes(16)))
    os.eventfd_write(registers.kick_fd(1), 1)
    machine.wait(1)
    assert machine.ring.error() == 0
    assert registers.read(0x100, 4) == b"test"
    put(0x0AC, 0)
    assert [get(offset) for offset in (0x0B0, 0x0B4, 0x0B8, 0x0BC)] == [8 << 20, 0, 0, 1 << 8]
    put(0x0AC, 1)
    assert get(0x0B0) == get(0x0BC) == 0xFFFFFFFF
    put(0x070, 0)
    assert machine.device.state == "ready"
    with pytest.raises(ValueError, match="queue 2"):
        registers.kick_fd(2)
    with pytest.raises(ValueError, match="8 bytes"):
        registers.read(0, 9)
    machine.device.close()
    put(0x070, 0, 1, 3)
    os.close(interrupts)


def test_a_device_stays_with_its_process(machine: Machine) -> None:
    machine.start()
    machine.ask(init())
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with refused("forked"):
                machine.device.pause()
            machine.device.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    machine.ask(request(GETATTR, 1, bytes(16)))
    assert machine.ring.error() == 0


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def nothing_more_than(before: tuple[int, int]) -> bool:
    """No more descriptors and threads than `before`; threads that were told to end take a moment to be gone."""
    deadline = time.monotonic() + PATIENCE
    while any(now > then for now, then in zip(held(), before, strict=True)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_nothing_is_left_of_a_thousand_devices(share: Path) -> None:
    fs = Passthrough(share)

    def cycle(number: int) -> None:
        machine = Machine(fs)
        machine.start()
        if number % 10 == 0:
            machine.ask(init())
        if number % 3 == 0:
            machine.device.pause()
        if number % 2:
            machine.device.close()
        # Else it is dropped as it is.

    for number in range(100):
        cycle(number)
    gc.collect()
    before, memory = held(), resident()
    for number in range(1000):
        cycle(number)
    assert nothing_more_than(before), (held(), before)
    assert resident() - memory < 20 << 20


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_many_devices_in_one_process(share: Path, workers: int | None) -> None:
    fs = Passthrough(share)
    first = Machine(fs)  # with it comes the thread that hands log lines to Python
    shared = None if workers is None else Workers(workers)
    before, memory = held(), resident()
    machines = [Machine(fs, workers=shared) for _ in range(200)]
    assert held()[1] == before[1], "a device that was not started has no thread"
    assert resident() - memory < 200 << 20
    for machine in machines:
        machine.start()
    for machine in machines:
        assert len(machine.ask(init())) == 80
    # One thread calls the functions that are interrupts; each device has two queues.
    assert held()[1] <= before[1] + 1 + (workers or 400)
    for machine in machines:
        machine.device.close()
    del machines, machine
    assert nothing_more_than(before), (held(), before)
    first.device.close()


class Calls(RuleBasedStateMachine):
    """Any sequence of calls, against what the documentation says of each."""

    fs: Passthrough

    @initialize()
    def make(self) -> None:
        self.machine = Machine(self.fs)
        self.state = "ready"
        self.session = False

    def teardown(self) -> None:
        self.machine.device.close()

    def call(self, allowed: tuple[str, ...], then: str, act: Callable[[], None]) -> None:
        if self.state in allowed:
            act()
            self.state = then
        else:
            with refused(self.state):
                act()

    @rule()
    def start(self) -> None:
        if self.state == "ready":
            self.machine.memory.write(0x10000, bytes(0x8000))
            self.session = False
        self.call(("ready",), "running", self.machine.start)

    @rule()
    def pause(self) -> None:
        self.call(("running",), "paused", self.machine.device.pause)

    @rule()
    def resume(self) -> None:
        self.call(("paused",), "running", self.machine.device.resume)

    @rule()
    def save_and_restore(self) -> None:
        """Another device takes the place of one that is paused."""

        def act() -> None:
            saved = self.machine.device.save()
            self.machine.device.close()
            calls = [None, self.machine.ring.interrupted.set]
            self.machine.device = Device.restore(saved, self.fs, self.machine.memory, calls=calls)

        self.call(("paused",), "paused", act)

    @rule()
    def reset(self) -> None:
        self.call(("ready", "running", "paused"), "ready", self.machine.device.reset)

    @rule(queue=st.sampled_from([0, 1]))
    def notify(self, queue: int) -> None:
        self.call(("running", "paused"), self.state, lambda: self.machine.device.notify(queue))

    @precondition(lambda self: self.state != "closed")
    @rule(features=st.integers(0, 2**64 - 1).filter(lambda bits: bits & ~0x1_3000_0000 or not bits & VERSION_1))
    def start_wrongly(self, features: int) -> None:
        with pytest.raises((ValueError, StateError)):
            self.machine.device.start(features, [])

    @precondition(lambda self: self.state == "running")
    @rule()
    def ask(self) -> None:
        if not self.session:
            assert len(self.machine.ask(init())) == 80
            self.session = True
        self.machine.ask(request(GETATTR, 1, bytes(16)))
        assert self.machine.ring.error() == 0

    @rule()
    def close(self) -> None:
        self.machine.device.close()
        self.state = "closed"

    @invariant()
    def is_in_its_state(self) -> None:
        if hasattr(self, "machine"):
            assert self.machine.device.state == self.state


def test_any_sequence_of_calls(share: Path) -> None:
    Calls.fs = Passthrough(share)
    limits = settings(max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Calls, settings=limits)
