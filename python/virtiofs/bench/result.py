"""A result as a whole: what was measured where, by whom, and the files of it."""

import json
import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from virtiofs import _core
from virtiofs.errors import ConfigError

from . import limits, report, table, verdicts, wakeup
from .daemons import NATIVE, Daemon
from .machine import Machine, title
from .measure import Measurement


class Told(TypedDict):
    """What there is to say of a daemon."""

    command: str
    version: str


@dataclass(frozen=True)
class Result:
    """All of it.

    Attributes:
        machine: where it was measured.
        daemons: name -> command and version, in the order of the columns.
        measurements: what `measure` answered.
    """

    machine: Machine
    daemons: dict[str, Told]
    measurements: list[Measurement]

    @staticmethod
    def of(machine: Machine, daemons: list[Daemon], measurements: list[Measurement]) -> "Result":
        """Of what was just measured."""
        told = {daemon.name: Told(command=_short(daemon.command), version=daemon.version()) for daemon in daemons}
        return Result(machine, told, measurements)

    @staticmethod
    def read(stem: Path) -> "Result":
        """From STEM.json.

        Raises:
            ConfigError: there is none, or it is no result, or one that lacks what is told today.
        """
        file = stem.with_suffix(".json")
        try:
            kept = json.loads(file.read_text())
            result = Result(kept["machine"], kept["daemons"], kept["measurements"])
            # Told once in vain: what cannot be told is to be known before hours of measuring, not after.
            _ = result.text
        except OSError as error:
            raise ConfigError(f"--keep: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"--keep: {file} is no result of this version of virtiofs bench ({error!r}): leave --keep out"
            ) from error
        return result

    def goes_with(self, now: "Result") -> None:
        """Whether lines measured now, of which `now` has where and by whom, can stand beside these.

        Raises:
            ConfigError: they were measured elsewhere, or of another version of a daemon.
        """
        there, here = dict(self.machine), dict(now.machine)
        for what in ("kernel", "cpu", "cpus", "filesystem"):
            if there.get(what) != here[what]:
                raise ConfigError(f"--keep: the {what} was {there.get(what)}, and is {here[what]} now")
        for name in self.daemons.keys() & now.daemons.keys():
            was, version = self.daemons[name]["version"], now.daemons[name]["version"]
            if was != version:
                raise ConfigError(
                    f"--keep: {name} was {was}, and is {version} now: leave --keep out, or take another --out"
                )

    def keeping(self, earlier: "Result") -> "Result":
        """With the lines of an earlier result that were not measured again: so a line is of one run, ours and peers.

        System calls and wake-ups go with their row, whether they were measured again or not.
        """
        again = {_line(one) for one in self.measurements}
        again |= {_beside(one["row"]) for one in self.measurements}
        kept = [one for one in earlier.measurements if _line(one) not in again]
        both = sorted(kept + self.measurements, key=_place)
        return Result(self.machine, earlier.daemons | self.daemons, both)

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [*self.daemons, *([NATIVE] if any(one["daemon"] == NATIVE for one in self.measurements) else [])]

    @property
    def title(self) -> str:
        """The machine, and of how many rounds the medians are."""
        lines = Counter((_line(one), one["daemon"]) for one in self.measurements if "depth" in one)
        return title(self.machine, lines.values())

    @property
    def text(self) -> str:
        """Markdown."""
        daemons = "".join(f"- {name}: {one['version']}, `{one['command']}`\n" for name, one in self.daemons.items())
        return f"{self.title}\n\n{report.markdown(self.measurements, self.names)}\n### Daemons\n\n{daemons}"

    def write(self, stem: Path) -> None:
        """STEM.md, .json, .html, and the plots. Needs matplotlib."""
        from . import page

        stem.parent.mkdir(parents=True, exist_ok=True)
        more = {
            "ratios": table.ratios(table.medians(self.measurements)),
            "wakeup": wakeup.wakeups(self.measurements),
            "limits": limits.limits(self.measurements),
            "bars": verdicts.verdicts(self.measurements),
        }
        stem.with_suffix(".md").write_text(self.text)
        stem.with_suffix(".json").write_text(json.dumps(asdict(self) | more, indent=1) + "\n")
        drawn = {}
        for figure in page.PLOTS:
            plotted = page.plot(self.measurements, self.names, figure)
            drawn[figure] = page.svg(plotted)
            file = stem.with_name(f"{stem.name}-{figure.replace('_', '-')}.svg")
            file.write_text(drawn[figure])
            plotted.savefig(file.with_suffix(".png"), dpi=120)
        stem.with_suffix(".html").write_text(page.page(self, drawn))


def _short(command: str) -> str:
    """Without the folder that the program lies in on this machine."""
    program = shlex.split(command)[0]
    return command.replace(program, Path(program).name, 1)


def _line(one: Measurement) -> tuple[str, str, int, str, int]:
    """What is measured anew as a whole: system calls and wake-ups whenever their row is."""
    if one["row"] == wakeup.WAKEUP or one["daemon"] == NATIVE:
        return _beside(one["beside" if "beside" in one else "row"])
    return one["row"], "", one.get("queues", 0), one.get("driver", ""), one.get("depth", 0)


def _beside(row: str) -> tuple[str, str, int, str, int]:
    """The line of the system calls and the wake-ups that were measured beside a row."""
    return row, NATIVE, 0, "", 0


def _place(one: Measurement) -> tuple[int, int, str, int]:
    """Where it stands among all lines."""
    rows = _core.load_rows()
    row, _, queues, driver, depth = _line(one)
    return rows.index(row) if row in rows else len(rows), queues, driver, depth
