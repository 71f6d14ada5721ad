"""Three minutes of what `make soak` does for thirty."""

from pathlib import Path

import pytest

from tests.soak import soak


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_what_the_daemon_holds_stays_flat(tmp_path: Path) -> None:
    figures = soak(tmp_path, 3)
    print(figures)
    assert figures.killed >= 7
    figures.check()
