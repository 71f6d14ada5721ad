"""What the documents name is there, and who is said to hold a promise is a test."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
DOCUMENTS = [*TOP.glob("*.md"), *TOP.glob("docs/*.md"), *TOP.glob("benches/*.md"), TOP / "tests" / "vm" / "README.md"]
PATH = re.compile(r"`((?:tests|rust|fuzz|docs|python|benches|tools|examples)/[\w./*-]+)`")
LINK = re.compile(r"\]\((?![a-z]+:)([^)#]+)(?:#[^)]*)?\)")
BUILT = {"docs/api", "fuzz/artifacts"}
TESTS = re.compile(r"^\s*def test_|#\[test\]|\bfuzz_target!", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_what_is_named_is_there(document: Path) -> None:
    text = document.read_text()
    missing = [path for path in PATH.findall(text) if path not in BUILT and not any(TOP.glob(path.rstrip("/")))]
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


def test_each_promise_is_held_by_a_test() -> None:
    text = (TOP / "docs" / "security.md").read_text().partition("\n## Promises\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    for promise, holders in rows:
        named = PATH.findall(holders)
        assert named, promise
        for name in named:
            path = TOP / name
            files = [path] if path.is_file() else [*path.rglob("*.rs"), *path.rglob("*.py")]
            assert any(TESTS.search(file.read_text()) for file in files), f"no test in {name}: {promise}"
