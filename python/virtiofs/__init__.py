"""Share directories of this host with virtual machines over virtio-fs."""

import warnings

from . import _core
from ._core import Blocks, GuestMemory, VersionTable, Workers, __version__
from .cache import ALWAYS, AUTO, METADATA, NONE, Cache
from .config import Config, Share
from .device import Device, SharedMemory
from .errors import BoundsError, ConfigError, ProtocolError, RestoreError, StateError, VirtiofsError
from .filesystem import FileSystem
from .mmio import MmioTransport
from .mounts import Mount, mount
from .passthrough import Passthrough
from .plan import Plan, explain
from .policy import Policy, Rule
from .queues import Queue
from .server import Server, serve
from .types import Attr, Changes, DeviceStats, DirEntry, Entry, InFlight, Lock, Lost, Node, Open, Request, Statfs, Stats

__all__ = [
    "ALWAYS",
    "AUTO",
    "METADATA",
    "NONE",
    "Attr",
    "Blocks",
    "BoundsError",
    "Cache",
    "Changes",
    "Config",
    "ConfigError",
    "Device",
    "DeviceStats",
    "DirEntry",
    "Entry",
    "FileSystem",
    "GuestMemory",
    "InFlight",
    "Lock",
    "Lost",
    "MmioTransport",
    "Mount",
    "Node",
    "Open",
    "Passthrough",
    "Plan",
    "Policy",
    "ProtocolError",
    "Queue",
    "Request",
    "RestoreError",
    "Rule",
    "Server",
    "Share",
    "SharedMemory",
    "StateError",
    "Statfs",
    "Stats",
    "VersionTable",
    "VirtiofsError",
    "Workers",
    "__version__",
    "explain",
    "mount",
    "serve",
]

if _core.DEBUG_BUILD:
    warnings.warn(
        "virtiofs was built without optimisation and is slow: build it with --release", RuntimeWarning, stacklevel=2
    )

for _name in __all__:
    # Names read as what users import, not as where they happen to lie.
    if hasattr(_value := globals()[_name], "__module__") and not isinstance(_value, Cache):
        _value.__module__ = __name__
del _name, _value
