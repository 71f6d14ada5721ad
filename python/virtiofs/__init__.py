"""Share directories of this host with virtual machines over virtio-fs."""

import warnings

from . import _core
from ._core import __version__
from .cache import ALWAYS, AUTO, METADATA, NONE, Cache
from .config import Config, Share
from .errors import ConfigError, ProtocolError, VirtiofsError
from .mounts import Mount, mount
from .passthrough import Passthrough
from .server import Server, serve
from .types import Attr, DirEntry, Entry, Open, Statfs, Stats

__all__ = [
    "ALWAYS",
    "AUTO",
    "METADATA",
    "NONE",
    "Attr",
    "Cache",
    "Config",
    "ConfigError",
    "DirEntry",
    "Entry",
    "Mount",
    "Open",
    "Passthrough",
    "ProtocolError",
    "Server",
    "Share",
    "Statfs",
    "Stats",
    "VirtiofsError",
    "__version__",
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
