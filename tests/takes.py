"""What tests take of the machine that they run on."""

import os

import pytest

from virtiofs.host import has_capability

mounts = pytest.mark.skipif(
    not os.path.exists("/dev/fuse") or not has_capability("SYS_ADMIN"), reason="takes root and /dev/fuse"
)
"""Shares that are mounted on this host itself."""
