"""The work: fio's jobs on data, and what programs do with many small files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUITES = "/mnt/suites"
LIBRARIES = f"{SUITES}/usr/lib/x86_64-linux-gnu"
FIO = f"LD_LIBRARY_PATH={LIBRARIES}:{LIBRARIES}/ceph {SUITES}/usr/bin/fio"
JOBS = 4
KEPT = "% kept"
LONG_AGO = 1_600_000_000


@dataclass(frozen=True)
class Sizes:
    """How much work: MiB that a fio job goes through at most, in seconds at most; files to look at and to unpack."""

    mib: int
    seconds: float
    files: int
    unpacked: int


@dataclass(frozen=True)
class Row:
    """One kind of work in a mounted directory ``$M``, which is freshly mounted before ``prepare``.

    ``measure`` is timed. ``unit`` is what the figure counts: MiB/s, of which more is better, µs per entry or percent of
    ``read_mib`` that stay in the guest's memory, of which less is.
    """

    name: str
    measure: str
    prepare: str = ""
    entries: int = 0
    read_mib: int = 0

    @property
    def data(self) -> bool:
        """Whether fio does it."""
        return not self.entries and not self.read_mib

    @property
    def unit(self) -> str:
        return "MiB/s" if self.data else KEPT if self.read_mib else "µs/entry"


def rows(sizes: Sizes) -> Iterator[Row]:
    """All kinds, fio's named as in the jobs that the authors of virtio-fs published (rhvgoyal/virtiofs-tests)."""
    for multi in ("", "-multi"):
        for rw in ("read", "write"):
            for order in ("seq", "rand"):
                for engine in ("psync", "mmap", "libaio"):
                    yield Row(f"{order}{rw}-{engine}{multi}", _fio(order, rw, engine, bool(multi), sizes))
    looked_at = sizes.files + _folders(sizes.files)
    new = sizes.unpacked + _folders(sizes.unpacked)
    stat = "find $M/tree -printf '%s %T@\\n' > /dev/null"
    unpack = "tar -xf /tmp/small.tar -C $M"
    yield Row("find-cold", "find $M/tree > /dev/null", entries=looked_at)
    yield Row("stat-cold", stat, entries=looked_at)
    yield Row("stat-warm", stat, prepare=stat, entries=looked_at)
    yield Row("git-status-cold", "git --git-dir $M/git --work-tree $M/tree status --porcelain", entries=looked_at)
    yield Row("unpack", f"{unpack}\nsync -f $M", prepare="rm -rf $M/small", entries=new)
    # What was unpacked is seen for the first time by those that remove it.
    remove = f"[ -d $M/small ] || {unpack}\numount $M\neval $mounting"
    yield Row("rm-rf", "rm -rf $M/small", prepare=remove, entries=new)
    cached = "awk '/^Cached:/ {print $2}' /proc/meminfo"
    forget = f"sync\necho 3 > /proc/sys/vm/drop_caches\ncat /proc/version > /dev/null\n{cached} > /dev/null"
    kept = f"before=$({cached})\ncat $M/fio/one > /dev/null\necho kept $(($({cached}) - before))"
    yield Row("page-cache", kept, prepare=forget, read_mib=sizes.mib)


def _fio(order: str, rw: str, engine: str, multi: bool, sizes: Sizes) -> str:
    kind = ("rand" if order == "rand" else "") + rw
    words = [f"--name=job --rw={kind} --ioengine={engine} --bs=4k --iodepth=16 --direct=0 --fallocate=none"]
    # Every block once: a job that begins anew would read what the guest has by then.
    words += [
        f"--runtime={round(sizes.seconds * 1000)}ms --size={sizes.mib // (JOBS if multi else 1)}m --directory=$M/fio"
    ]
    # What the guest collected counts when the server has it.
    words += ["--end_fsync=1"] if rw == "write" else []
    words += [f"--numjobs={JOBS} --group_reporting --filename_format='$jobname.$jobnum'" if multi else "--filename=one"]
    return f"{FIO} --output-format=json {' '.join(words)}"


def data_figure(output: str) -> tuple[float, int]:
    """What fio printed, as MiB/s and operations. Raises ValueError when there were none."""
    # Notes may stand before the object.
    (job,) = json.loads(output[output.index("{") :])["jobs"]
    done = max(job["read"], job["write"], key=lambda way: way["total_ios"])
    if job["error"] or not done["total_ios"]:
        raise ValueError(f"fio's error {job['error']}, {done['total_ios']} operations")
    return done["bw_bytes"] / (1 << 20), done["total_ios"]


# The data.


def _folders(files: int) -> int:
    return max(files // 50, 1)


def make(data: Path, tags: list[str], sizes: Sizes) -> None:
    """Fill a folder of ``data`` for each tag, all alike. Raises OSError, subprocess.CalledProcessError (git)."""
    template = data / "template"
    _files(template / "tree", sizes.files)
    _files(template / "packed/small", sizes.unpacked)
    with tarfile.open(template / "small.tar", "w") as archive:
        archive.add(template / "packed/small", "small")
    shutil.rmtree(template / "packed")
    if shutil.which("git"):
        git = ["git", "--git-dir", str(template / "git"), "--work-tree", str(template / "tree")]
        subprocess.run([*git, "init", "--quiet"], check=True)
        # The same file has another inode number behind each server.
        for key, value in {"core.checkStat": "minimal", "core.trustCtime": "false", "core.fsmonitor": "false"}.items():
            subprocess.run([*git, "config", key, value], check=True)
        subprocess.run([*git, "add", "."], check=True, cwd=template / "tree")
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        subprocess.run([*git, *identity, "commit", "--quiet", "-m", "all"], check=True)
    (template / "fio").mkdir()
    block = os.urandom(1 << 20)
    for name, mib in {"one": sizes.mib, **{f"job.{number}": sizes.mib // JOBS for number in range(JOBS)}}.items():
        with (template / "fio" / name).open("wb") as file:
            for _ in range(mib):
                file.write(block)
    for tag in tags:
        subprocess.run(["cp", "-a", template, data / tag], check=True)


def _files(folder: Path, count: int) -> None:
    for number in range(count):
        file = folder / f"folder{number % _folders(count):03}" / f"file{number:05}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number}\n" * (number % 200))
        # Before git's index: what is as new as the index is read again.
        os.utime(file, (LONG_AGO, LONG_AGO))
