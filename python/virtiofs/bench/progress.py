"""How far a benchmark is, for who watches."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """Tells how far it is: a bar where a terminal and rich are, nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _what: None
        return
    if not importlib.util.find_spec("rich"):
        done = 0

        def line(what: str) -> None:
            nonlocal done
            done += 1
            print(f"\r{done}/{total} {what:50}", end="\n" if done == total else "", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def step(what: str) -> None:
            bar.update(task, description=what, advance=1)

        yield step
