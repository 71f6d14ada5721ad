"""The public surface is a list, and the package is what was installed."""

import importlib
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import virtiofs
from virtiofs import _core


def test_all_is_what_is_exported() -> None:
    exported = {
        name for name, value in vars(virtiofs).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert exported == set(virtiofs.__all__) - {"__version__"}


def test_all_is_sorted() -> None:
    def by_kind(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 2 if name[0] in "_abcdefghijklmnopqrstuvwxyz" else 1, name)

    assert virtiofs.__all__ == sorted(virtiofs.__all__, key=by_kind)


def test_names_say_where_users_find_them() -> None:
    for name in virtiofs.__all__:
        value = getattr(virtiofs, name)
        if isinstance(value, type) or callable(value):
            assert value.__module__ == "virtiofs", name


def test_every_public_name_is_documented() -> None:
    for name in virtiofs.__all__:
        value = getattr(virtiofs, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name
        if isinstance(value, type):
            for attribute, member in vars(value).items():
                if callable(member) and not attribute.startswith("_"):
                    assert member.__doc__, f"{name}.{attribute}"


def test_every_module_imports() -> None:
    for module in pkgutil.walk_packages(virtiofs.__path__, "virtiofs."):
        if module.name != "virtiofs.__main__":
            importlib.import_module(module.name)


def test_versions_agree() -> None:
    assert virtiofs.__version__ == metadata.version("virtiofs")


def test_is_typed() -> None:
    assert virtiofs.__file__ is not None
    package = Path(virtiofs.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_import_starts_no_thread_and_needs_no_checkout(tmp_path: Path) -> None:
    program = "import virtiofs, os; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "1\n"


def test_serving_imports_no_heavy_modules(tmp_path: Path) -> None:
    program = "import sys, virtiofs.cli; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "logging", "subprocess", "tempfile", "ctypes", "rich", "virtiofs.doctor"}


def test_warns_of_a_debug_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "DEBUG_BUILD", True)
    with pytest.warns(RuntimeWarning, match="built without optimisation"):
        importlib.reload(virtiofs)
