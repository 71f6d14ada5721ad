"""The real work in User-Mode Linux, in each cache mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from . import daemon
from .conftest import sharing
from .guest import Share
from .uml import Uml
from .work import HEAVY, LIGHT, Place, Work


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if daemon.name() == "virtiofsd-c":
        pytest.skip("virtiofsd-c has no config space, from which alone UML learns the tag")
    folder = tmp_path_factory.mktemp("share")
    with sharing(lambda served: Uml([Share(served.socket)], memory="1G"), folder, request.param) as place:
        yield place


@pytest.mark.parametrize("place", ["auto", "none", "always"], indirect=True)
@pytest.mark.parametrize("work", LIGHT + HEAVY, ids=lambda work: work.__name__)
def test_work(place: Place, work: Work, do: Callable[[Place, Work], None]) -> None:
    do(place, work)
