"""What figures depend on beside the daemons."""

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict


class Machine(TypedDict):
    """The machine that was measured on.

    Attributes:
        cpus: processors that may be used: of the machine's those that this process, and so the daemons, are not kept from.
    """

    kernel: str
    cpu: str
    cpus: int
    filesystem: str
    load_average: float
    time: str


def describe(directory: Path) -> Machine:
    """This machine now, and the file system that `directory` lies on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    filesystem = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=False)
    return Machine(
        kernel=platform.release(),
        cpu=models[0] if models else platform.processor(),
        cpus=len(os.sched_getaffinity(0)),
        filesystem=filesystem.stdout.strip(),
        load_average=round(os.getloadavg()[0], 2),
        time=time.strftime("%Y-%m-%d %H:%M:%S%z"),
    )


def title(machine: Machine, rounds: Iterable[int]) -> str:
    """One line for the top of a table; the lines of it are medians of so many rounds."""
    all_of = set(rounds) or {0}
    counted = " to ".join(str(end) for end in sorted({min(all_of), max(all_of)}))
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs to use, Linux {machine['kernel']}, {machine['filesystem']}, "
        f"load {machine['load_average']:.1f} at the beginning; medians of {counted} rounds."
    )
