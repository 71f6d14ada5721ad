"""What the QEMU of this host can do."""

import platform
import re
import shutil
from typing import Final

PROGRAM: Final = f"qemu-system-{platform.machine()}"

WINDOW_DEVICE: Final = "vhost-user-test-device-pci"
"""The device of QEMU 11.1 that has a DAX window. QEMU calls it a test device, and has no other."""


def devices() -> frozenset[str] | None:
    """Returns the names of QEMU's devices, or None if there is no QEMU to ask."""
    found = shutil.which(PROGRAM)
    if found is None:
        return None
    import subprocess

    try:
        asked = subprocess.run(
            [found, "-device", "help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return frozenset(re.findall(r'^name "([^"]+)"', asked.stdout, re.MULTILINE))


def window_problem() -> str | None:
    """Returns why guests of the QEMU of this host get no DAX window, in one line; None if they do, or if there is no QEMU."""
    known = devices()
    if known is None or WINDOW_DEVICE in known:
        return None
    return f"the {PROGRAM} of this host has no device with a DAX window: QEMU 11.1 has one, {WINDOW_DEVICE}"
