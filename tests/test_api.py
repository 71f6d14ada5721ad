"""The API reference is made of the docstrings: every public name is in it."""

import re
import subprocess
import sys
from pathlib import Path

import virtiofs

MAKEFILE = Path(__file__).parent.parent / "Makefile"


def modules() -> list[str]:
    """What `make api` documents."""
    (line,) = re.findall(r"^PDOC := .*addprefix virtiofs\.,([\w ]+)\)$", MAKEFILE.read_text(), re.MULTILINE)
    return [f"virtiofs.{name}" for name in str(line).split()]


def test_the_reference(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdoc", "--docformat", "google", "virtiofs", r"!virtiofs\.", *modules()]
    done = subprocess.run([*command, "--output-directory", tmp_path], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "virtiofs.html").read_text()
    missing = [name for name in virtiofs.__all__ if f'id="{name}"' not in page and not name.startswith("__")]
    assert not missing
    operations = [name for name in vars(virtiofs.FileSystem) if not name.startswith("_")]
    assert [name for name in operations if f'id="FileSystem.{name}"' not in page] == []
    for module in modules():
        assert (tmp_path / f"{module.replace('.', '/')}.html").stat().st_size > 1000, module
