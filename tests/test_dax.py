"""The DAX window: what it may be, which files are mapped, and the embedded guest that maps them."""

import errno
import os
from pathlib import Path

import pytest

from tests.daemon import Start
from tests.daemon import virtiofs as run
from virtiofs import ConfigError, Passthrough, Server, dax
from virtiofs.testing import Guest

GRANULE = 2 << 20
ATTR_DAX = 2


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("2M", 2 << 20), ("512MiB", 512 << 20), ("1g", 1 << 30), (4 << 20, 4 << 20)]
)
def test_sizes_of_windows(text: str | int, size: int) -> None:
    assert dax.window(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1M", "take 2M"),
        ("3M", "take 4M"),
        ("96M", "take 128M"),
        ("3G", "take 4G"),
        ("1000000", "take 2M"),
        ("64T", "take 1G"),
        ("large", "say 512M or 1G"),
        ("-1G", "say 512M or 1G"),
        ("1.5G", "say 512M or 1G"),
        ("G", "say 512M or 1G"),
        ("", "say 512M or 1G"),
    ],
)
def test_what_is_no_window_is_refused_with_advice(text: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        dax.window(text)
    assert hint in " ".join([str(raised.value), *raised.value.__notes__])
    done = run("serve", tmp_path, "--socket", tmp_path / "s", f"--dax-window={text}")
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1


def test_which_files() -> None:
    assert (dax.files("never"), dax.files("always"), dax.files("64K"), dax.files(5)) == (None, 0, 65536, 5)
    for wrong in ("inode", "", -1, "1X"):
        with pytest.raises(ConfigError, match="never, always, or from a size on"):
            dax.files(wrong)


def test_the_line_for_qemu_names_the_device_that_has_a_window(share: Path, tmp_path: Path) -> None:
    server = Server(Passthrough(share), socket=tmp_path / "s", request_queues=2, dax_window="1G")
    assert server.qemu_arguments()[-1] == (
        "vhost-user-test-device-pci,chardev=fs0,virtio-id=26,num_vqs=3,vq_size=1024,config_size=40"
    )
    assert "vhost-user-fs-pci" in Server(Passthrough(share), socket=tmp_path / "s").qemu_line()


def test_a_daemon_says_which_qemu_can(share: Path, tmp_path: Path, start: Start) -> None:
    old = tmp_path / "bin"
    old.mkdir()
    qemu = old / f"qemu-system-{os.uname().machine}"
    qemu.write_text("""#!/bin/sh\necho 'name "vhost-user-fs-pci", bus PCI'\n""")
    qemu.chmod(0o755)
    daemon = start(share, "--socket", tmp_path / "s", "--dax-window=64M", env={"PATH": f"{old}:{os.environ['PATH']}"})
    assert "QEMU 11.1 has one" in daemon.wait_for("in the guest:")
    qemu.write_text("""#!/bin/sh\necho 'name "vhost-user-test-device-pci", bus PCI'\n""")
    daemon = start(share, "--socket", tmp_path / "t", "--dax-window=64M", env={"PATH": f"{old}:{os.environ['PATH']}"})
    assert "has no device" not in daemon.wait_for("in the guest:")


@pytest.mark.parametrize(
    "whole_pages",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can help such a front end")),
    ],
)
def test_a_mapped_file_is_the_hosts_memory(share: Path, whole_pages: bool) -> None:
    (share / "large").write_bytes(b"x" * 100_001)
    with Guest(Passthrough(share), dax=True, whole_pages=whole_pages) as guest:
        assert guest.window_size == 64 << 20
        assert guest.client.lookup(1, "large").attr.flags & ATTR_DAX
        assert not guest.client.lookup(1, "hello").attr.flags & ATTR_DAX
        guest.client.setupmapping(guest.node("large"), 0, GRANULE, GRANULE, write=True)
        assert guest.window_read(GRANULE + 100_000, 2) == b"x\0"
        guest.window_write(GRANULE + 5, b"guest")
        assert (share / "large").read_bytes()[:11] == b"xxxxxguestx"
        with open(share / "large", "r+b") as file:
            file.seek(200_000)
            file.write(b"host")
        assert guest.window_read(GRANULE + 200_000, 4) == b"host"
        assert guest.mappings == 1
        guest.client.removemapping([(GRANULE, GRANULE)])
        assert guest.mappings == 0
        with pytest.raises(ValueError, match="nothing is mapped"):
            guest.window_read(GRANULE, 1)


def test_truncated_files_read_as_zeros(share: Path) -> None:
    with Guest(Passthrough(share), dax=True) as guest:
        (share / "file").write_bytes(b"y" * 20_000)
        guest.client.setupmapping(guest.node("file"), 0, GRANULE, 0)
        assert guest.window_read(16_384, 1) == b"y"
        os.truncate(share / "file", 1)
        assert guest.window_read(0, 2) == b"y\0"
        assert guest.window_read(16_384, 10) == bytes(10)


@pytest.mark.parametrize(("which", "mapped"), [("never", []), ("always", ["deep", "hello"]), (5, ["hello"])])
def test_policy(share: Path, which: int | str, mapped: list[str]) -> None:
    os.link(share / "sub/deep", share / "deep")
    with Guest(Passthrough(share, dax=which), dax=True) as guest:
        names = [name for name in guest.listdir() if guest.client.lookup(1, name).attr.flags & ATTR_DAX]
        assert sorted(names) == mapped


def test_a_read_only_share_is_mapped_for_reading(share: Path) -> None:
    with Guest(Passthrough(share, read_only=True, dax="always"), dax=True) as guest:
        node = guest.node("hello")
        guest.client.setupmapping(node, 0, GRANULE, 0)
        assert guest.window_read(0, 5) == b"hello"
        with pytest.raises(ValueError, match="not for writing"):
            guest.window_write(0, b"x")
        with pytest.raises(OSError) as refused:
            guest.client.setupmapping(node, 0, GRANULE, 0, write=True)
        assert refused.value.errno == errno.EROFS


def test_a_guest_without_a_window(share: Path) -> None:
    with Guest(Passthrough(share, dax="always")) as guest:
        assert (guest.window_size, guest.mappings) == (0, 0)
        assert not guest.client.lookup(1, "hello").attr.flags & ATTR_DAX
        with pytest.raises(OSError) as refused:
            guest.client.setupmapping(guest.node("hello"), 0, GRANULE, 0)
        assert refused.value.errno == errno.EOPNOTSUPP
