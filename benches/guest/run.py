"""Compares ways to give a guest a directory, in one and the same QEMU guest: virtio-9p, Rust virtiofsd, and ours.

python benches/guest/run.py [--jobs LIST] [--only LIST] [--rounds N] [--seconds S] [--out FILE [--resume]]

Each has a directory of its own on the host's tmpfs, all alike. Under KVM where that boots, else in software emulation. Medians
over the rounds; tables go to stdout and, with --out FILE, to FILE.md and, with plots, to FILE.html, all measurements to
FILE.json. That one is written after each measurement: --resume goes on with what is in it, other jobs and more rounds too.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.vm import daemon, provision
from tests.vm.apt import AptError
from tests.vm.daemon import Daemon, DaemonError
from tests.vm.guest import GuestError, Share
from tests.vm.qemu import Qemu

from benches.guest import filesystems, meters, table, work
from benches.guest.filesystems import FileSystem
from benches.guest.record import Record, RecordError
from virtiofs.bench.progress import progress_bar

KERNEL = "9p"
MODULES = ("9p", "9pnet_virtio")
QUICK_JOBS = "seqread-psync,randwrite-psync,randread-mmap,stat-cold,unpack,rm-rf,page-cache"
QUICK_ONLY = "9p loose,rust auto,ours auto,ours dax"
TMPFS = Path("/dev/shm")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", help="kinds of work, with commas between; * and ? are understood (default: all)")
    parser.add_argument("--only", help="what to compare, likewise: '9p *,rust auto,ours *' (default: all)")
    parser.add_argument("--rounds", type=int, help="times that everything is run (default: 3)")
    parser.add_argument("--seconds", type=float, help="that a job of fio takes at most (default: 1)")
    parser.add_argument(
        "--mib", type=int, help="that a job of fio goes through at most (default: 32 in emulation, 512 under KVM)"
    )
    parser.add_argument("--files", type=int, help="files to look at; a fifth of them is unpacked (default: 5000)")
    parser.add_argument("--accel", choices=("kvm", "tcg"), help="QEMU's accelerator (default: kvm if it boots)")
    parser.add_argument("--list", action="store_true", help="list the kinds of work and what is compared, and end")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write FILE.json, FILE.md, FILE.html and FILE-*.svg")
    parser.add_argument("--resume", action="store_true", help="leave out what is in FILE.json already, and add to it")
    parser.add_argument("--quick", action="store_true", help="a smoke test: other defaults, and one short round")
    options = parser.parse_args()
    if options.resume and not options.out:
        parser.error("--resume goes on with the file of --out")
    if options.quick:
        options.jobs, options.only = options.jobs or QUICK_JOBS, options.only or QUICK_ONLY
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.2 if options.quick else 1.0)
    options.files = options.files or (250 if options.quick else 5000)
    return options


Named = TypeVar("Named", FileSystem, work.Row)


def matching(known: list[Named], patterns: str | None) -> list[Named]:
    """Those whose names match one of the patterns."""
    wanted = [pattern.strip() for pattern in (patterns or "*").split(",")]
    for pattern in wanted:
        if not any(fnmatch.fnmatchcase(one.name, pattern) for one in known):
            raise SystemExit(f"nothing is called {pattern!r}: see --list")
    return [one for one in known if any(fnmatch.fnmatchcase(one.name, pattern) for pattern in wanted)]


def accelerator(wanted: str | None) -> tuple[str, str]:
    """QEMU's accelerator, and why it is that one."""
    if wanted:
        return wanted, "as asked for"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "no /dev/kvm that may be used"
    try:
        with Qemu([], kernel=KERNEL, root=False, accelerator="kvm", boot_timeout=30):
            return "kvm", "/dev/kvm boots this kernel"
    except GuestError:
        return "tcg", "/dev/kvm does not boot this kernel"


def measure(
    guest: Qemu, requests: meters.Requests, one: FileSystem, server: Daemon | None, row: work.Row
) -> dict[str, Any]:
    """One kind of work on one file system, freshly mounted: its figures, or ``error``."""
    begin = f"export M={one.mount}\nmounting={one.mounting!r}\n"
    mounted = guest.run(f"{begin}mkdir -p $M\n{one.mounting}\n{row.prepare}\n{requests.start()}", timeout=300)
    if mounted.status != 0:
        result: dict[str, Any] = {"error": last_line(mounted.output)}
    else:
        # Asked anew: who serves may have become another process since it listened.
        pid = server.serving if server else None
        before = meters.cost(guest.pid, pid)
        timed = f"from=$EPOCHREALTIME\n{row.measure}\nto=$EPOCHREALTIME\necho took $((${{to/./}} - ${{from/./}}))"
        done = guest.run(f"{begin}{timed}", timeout=300)
        spent = meters.cost(guest.pid, pid) - before
        result = figures(row, done.output) if done.status == 0 else {"error": last_line(done.output)}
        if "error" not in result:
            counts = requests.read(one.mount)
            result |= {
                "unit": row.unit,
                "daemon_cpu_us": spent.daemon * 1e6 / result["ops"],
                "qemu_cpu_us": spent.qemu * 1e6 / result["ops"],
                "requests": counts,
                "requests_per_op": sum(counts.values()) / result["ops"],
            }
    guest.check(f"umount {one.mount} || ! mountpoint -q {one.mount}")
    return {"row": row.name, "file_system": one.name, **result}


def figures(row: work.Row, output: str) -> dict[str, Any]:
    """The ``figure`` in the row's unit, ``ops`` (operations of fio, or entries) and ``seconds`` that it took."""
    rest, _, took = output.rpartition("took ")
    seconds = int(took) / 1e6
    if row.read_mib:
        kept = int(rest.rpartition("kept ")[2]) / 1024
        return {"figure": kept / row.read_mib * 100, "ops": row.read_mib * 256, "seconds": seconds}
    if not row.data:
        return {"figure": seconds * 1e6 / row.entries, "ops": row.entries, "seconds": seconds}
    try:
        rate, ops = work.data_figure(rest)
    except ValueError as error:
        return {"error": str(error)}
    return {"figure": rate, "ops": ops, "seconds": seconds}


def last_line(output: str) -> str:
    """What a failed script said: fio's first complaint, or the last words."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if line.startswith("fio: ")), lines[-1])


def run(
    chosen: list[FileSystem],
    sizes: work.Sizes,
    rows: list[work.Row],
    rounds: int,
    accel: str,
    record: Record,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measures what ``record`` lacks, and answers what is known of the guest.

    Rows outermost, and each round begins with the next file system. An interrupt or SIGTERM ends it early.
    """
    with ExitStack() as resources:
        data = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="virtiofs-bench-", dir=TMPFS)))
        work.make(data, [one.tag for one in chosen], sizes)
        served = filesystems.serve(chosen, data, resources)
        suites = resources.enter_context(
            Daemon(provision.cache().suites, "suites", command=f"{daemon.OURS} --readonly".replace("{cache}", "always"))
        )
        template = resources.enter_context(Daemon(data / "template", "template", command=daemon.OURS))
        helpers = [Share(suites.socket, "suites", work.SUITES), Share(template.socket, "template", "/mnt/template")]
        guest = resources.enter_context(
            Qemu(
                [*helpers, *served.shares],
                kernel=KERNEL,
                memory=1024 + 2 * sizes.mib,
                accelerator=accel,
                modules=MODULES,
                # Threads have names: those that run the guest are told from the rest.
                more=["-name", "bench,debug-threads=on", *served.words],
            )
        )
        requests = meters.Requests(guest)
        # What is run is in memory before the first of them is measured.
        guest.check("cp /mnt/template/small.tar /tmp/\numount /mnt/template")
        guest.check(f"{work.FIO} --version; find /tmp > /dev/null; tar -tf /tmp/small.tar > /dev/null; git --version")
        try:
            for row in rows:
                for turn in range(rounds):
                    for place in range(len(chosen)):
                        one = chosen[(place + turn) % len(chosen)]
                        progress(f"{row.name} round {turn + 1}/{rounds} {one.name}")
                        if record.has(row.name, one.name, turn):
                            continue
                        with meters.Pauses() as pauses:
                            result = measure(guest, requests, one, served.daemons.get(one.name), row)
                        if pauses.longest > meters.PAUSE:
                            # Nothing was learned but that somebody had stopped the machine, or all of this.
                            with meters.Pauses() as pauses:
                                result = measure(guest, requests, one, served.daemons.get(one.name), row)
                        load = round(os.getloadavg()[0], 2)
                        record.add(result | {"round": turn, "load": load, "paused": pauses.longest > meters.PAUSE})
        except KeyboardInterrupt:
            # The guest may be in the middle of an answer.
            guest.kill()
            return {"kernel": guest.release, "complete": False}
        return {"kernel": guest.release, "complete": True, "complaints": guest.complaints()}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    cache = provision.cache()
    return {
        "kernel": platform.release(),
        "cpu": cpu[0] if cpu else platform.processor(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "qemu": version(str(cache.qemu)),
        "rust": version(str(cache.virtiofsd)),
        "ours": version(str(shutil.which("virtiofs", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"))),
    }


def version(program: str) -> str:
    """The first line that a program says of its version."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return next((line for line in (done.stdout + done.stderr).splitlines() if line), "?")


def main() -> int:
    options = arguments()
    known = list(filesystems.KNOWN)
    if options.list:
        print(*(row.name for row in work.rows(work.Sizes(1, 1, 1, 1))), "", *(one.name for one in known), sep="\n")
        return 0
    reason = provision.problem(f"kernels/{KERNEL}") or daemon.problem()
    if reason is None and not TMPFS.is_dir():
        reason = f"{TMPFS} is missing"
    if reason is not None:
        print(f"bench-guest: {reason}", file=sys.stderr)
        return 2
    chosen = matching(known, options.only)
    missing = {one.name: why for one in chosen if (why := filesystems.problem(one)) is not None}
    for name, why in missing.items():
        print(f"bench-guest: without {name}: {why}", file=sys.stderr)
    chosen = [one for one in chosen if one.name not in missing]
    accel, why = accelerator(options.accel)
    mib = options.mib or (8 if options.quick else 32 if accel == "tcg" else 512)
    sizes = work.Sizes(mib, options.seconds, options.files, max(options.files // 5, 1))
    rows = matching(list(work.rows(sizes)), options.jobs)
    about = machine() | {"accelerator": accel, "accelerator_because": why}
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
    try:
        record = Record(options.out and options.out.with_suffix(".json"), about, sizes, resume=options.resume)
        lacking = record.lacking(rows, chosen, options.rounds)
        if lacking:
            with progress_bar(len(rows) * options.rounds * len(chosen)) as progress:
                record.guest = run(chosen, sizes, lacking, options.rounds, accel, record, progress)
    except (AptError, DaemonError, GuestError, RecordError) as error:
        print(f"bench-guest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench-guest: stopped before anything was measured", file=sys.stderr)
        return 130
    print(text := f"{table.title(record)}\n\n{table.markdown(record.measurements, known)}")
    if options.out:
        record.save()
        options.out.with_suffix(".md").write_text(text)
        if importlib.util.find_spec("matplotlib"):
            from benches.guest import page

            page.write(options.out, record, known)
        else:
            print(
                "bench-guest: no page and no plots without matplotlib: pip install 'virtiofs[bench]'", file=sys.stderr
            )
    return 0 if record.guest.get("complete", True) else 130


if __name__ == "__main__":
    raise SystemExit(main())
