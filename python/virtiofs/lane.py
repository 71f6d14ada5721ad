"""The event loop of a lane: where methods that are ``async def`` run, any number of them at a time."""

import asyncio
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._core import Lane


def run(lane: "Lane") -> None:
    """Serves until the lane is closed. Called by the lane's own thread."""
    asyncio.run(_serve(lane))


async def _serve(lane: "Lane") -> None:
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        # A method that does not wait for anything is done at once, without a turn of the loop.
        loop.set_task_factory(asyncio.eager_task_factory)
    closed = loop.create_future()

    def drain() -> None:
        if not lane.drain(loop.create_task) and not closed.done():
            closed.set_result(None)

    loop.add_reader(lane.fileno(), drain)
    try:
        await closed
    finally:
        loop.remove_reader(lane.fileno())
