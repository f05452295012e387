"""A storm of kills over all commands and methods: ``python -m benchmarks.kills --kills 500``.

Each kill: a fresh copy of a small project, a command in a fork, SIGKILL at a random moment or just before the fork
changes a file for the k-th time. Then what had been acknowledged must be there bit for bit, the same command must go on
(or say in one line that all is done), every run must resume, exports must work, and nothing may be left over. Each kill
has a name, ``export .tif:change:17``; ``--again NAME`` repeats it. Failures go to stderr as they come, the report to
``--report``, the last line is the summary.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.forks import Ended, answering, fork, killed_at, slicelabel, warm_up
from benchmarks.storm import COMMANDS, STATES, Command, new_runs, run_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LONGEST_UNTOUCHED_S = 300.0


@dataclass(frozen=True)
class Kill:
    """One kill: of which command, and when.

    Attributes
    ----------
    command : str
        Name in COMMANDS.
    mode : {"change", "moment", "interrupt"}
        SIGKILL before a change of a file, or at a moment; or SIGINT (Ctrl-C) before a change.
    at : float
        The number of the change, or seconds.
    """

    command: str
    mode: str
    at: float

    def __str__(self) -> str:
        return f"{self.command}:{self.mode}:{self.at:g}"

    @classmethod
    def of(cls, name: str) -> Kill:
        """Read what `str` gives."""
        command, mode, at = name.rsplit(":", 2)
        return cls(command, mode, float(at))


@dataclass
class Report:
    """What came of the kills."""

    kills: int = 0
    at_changes: int = 0
    interrupts: int = 0
    strokes_lost: int = 0
    runs_resumed: int = 0
    runs_never_begun: int = 0
    by_command: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    problems: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.at_changes} at a change of a file), {self.interrupts} interrupts, "
            f"{self.strokes_lost} strokes lost, "
            f"{self.runs_resumed} runs resumed or finished, {self.runs_never_begun} had not begun, "
            f"{len(self.problems)} problems"
        )


@dataclass(frozen=True)
class Untouched:
    """A command that nobody kills: what it gives and leaves, how long it takes, how often it changes a file."""

    result: Any
    names: frozenset[str]
    seconds: float
    changes: int


class Projects:
    """Folders with projects as commands find them, each made once.

    Parameters
    ----------
    folder : Path
        Scratch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def state(self, name: str) -> Path:
        """Return a folder with a project in a state of `STATES`."""
        folder = self._folder / "states" / name
        if not folder.exists():
            state = STATES[name]
            if state.beside:
                self.state(state.beside)
            if state.after:
                shutil.copytree(self.state(state.after), folder)
            else:
                folder.mkdir(parents=True)
            _expect(fork(lambda: state.prepare(folder), folder=folder), f"state {name}")
        return folder

    def fresh(self, name: str) -> Path:
        """Return a fresh copy of a state, always in the same place."""
        folder = self._folder / "work"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.state(name), folder)
        return folder


class Storm:
    """Prepared projects, commands that ran untouched, and kills.

    Parameters
    ----------
    folder : Path
        Scratch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.projects = Projects(folder)
        self.report = Report()
        self._untouched: dict[str, Untouched] = {}

    def untouched(self, command: Command) -> Untouched:
        """Return what a command gives that nobody kills; it runs once."""
        if command.name not in self._untouched:
            folder, count = self.projects.fresh(command.state), self.folder / "count"
            before = run_ids(folder)
            ended = fork(killed_at(0, folder, command.work(folder), count), folder=folder, hanging=LONGEST_UNTOUCHED_S)
            _expect(ended, command.name)
            for run_id in (new_runs(folder, before) or command.resumes(folder)) if command.runs else ():
                self._export(folder, run_id)
            result, left = answering(command.result, folder), names(folder)
            # again for the time: to watch costs some
            begun = fork(command.work(self.projects.fresh(command.state)), folder=folder, hanging=LONGEST_UNTOUCHED_S)
            self._untouched[command.name] = Untouched(result, left, begun.seconds, int(count.read_text()))
        return self._untouched[command.name]

    def draw(self, command: Command, rng: random.Random) -> Kill:
        """Return a kill of a command."""
        untouched = self.untouched(command)
        if untouched.changes and rng.random() < 0.6:
            mode = "interrupt" if command.speaks and rng.random() < 0.15 else "change"
            return Kill(command.name, mode, rng.randint(1, untouched.changes))
        return Kill(command.name, "moment", round(rng.random() * untouched.seconds, 4))

    def strike(self, kill: Kill) -> bool:
        """Kill a command and check what follows; return whether it was killed before it had ended."""
        command = COMMANDS[kill.command]
        untouched = self.untouched(command)
        folder = self.projects.fresh(command.state)
        before = run_ids(folder)
        work = command.work(folder)
        if kill.mode == "moment":
            ended = fork(work, folder=folder, kill_after=kill.at)
        else:
            by = signal.SIGINT if kill.mode == "interrupt" else signal.SIGKILL
            ended = fork(killed_at(int(kill.at), folder, work, self.folder / "count", by), folder=folder)
        problems = []
        if kill.mode == "interrupt":
            self.report.interrupts += 1
            problems += _misses(ended)
        elif ended.code == -signal.SIGKILL:
            self.report.kills += 1
            self.report.at_changes += kill.mode == "change"
            self.report.by_command[kill.command] += 1
        else:
            return False
        problems += self._problems(command, folder, before, untouched)
        self.report.strokes_lost += sum("lost" in problem for problem in problems)
        for problem in problems:
            self.report.problems.append({"kill": str(kill), "problem": problem})
            sys.stderr.write(f"{kill}: {problem}\n")
        return True

    def _problems(self, command: Command, folder: Path, before: frozenset[str], untouched: Untouched) -> Iterator[str]:
        yield from answering(command.lost, folder)
        yield from _refusals(fork(slicelabel("info", folder / "p.slicelabel")), "info", may_refuse=command.makes)
        if command.runs:
            yield from self._resumed(command, folder, before)
        else:
            again = fork(command.work(folder), folder=folder)
            # what was done in time is not done again, and said so: the result tells whether that is true
            yield from _refusals(again, "the same command again", may_refuse=True)
        result = answering(command.result, folder)
        if result != untouched.result:
            yield f"another result: {_difference(result, untouched.result)}"
        left = names(folder) - untouched.names
        yield from (f"left over: {name}" for name in sorted(left) if name.rpartition("/")[0] not in left)
        yield from _refusals(fork(slicelabel("info", folder / "p.slicelabel")), "info afterwards")

    def _resumed(self, command: Command, folder: Path, before: frozenset[str]) -> Iterator[str]:
        runs = new_runs(folder, before) or command.resumes(folder)
        for run_id in runs:
            record = folder / "p.slicelabel" / "runs" / run_id / "run.json"
            resumed = fork(slicelabel("run", folder / "p.slicelabel", "--resume", run_id), folder=folder)
            if not record.exists():
                self.report.runs_never_begun += 1
                if resumed.code != 2 or "never began" not in resumed.last_words:
                    yield f"resume of a run that never began: exit {resumed.code}: {resumed.last_words}"
                runs = ()
                continue
            yield from _refusals(resumed, "resume")
            self.report.runs_resumed += 1
        if not runs:
            yield from _refusals(fork(command.work(folder), folder=folder), "the same command again")
            runs = new_runs(folder, before)
        for run_id in runs:
            yield from self._export(folder, run_id)

    def _export(self, folder: Path, run_id: str) -> list[str]:
        arguments = ("export", folder / "p.slicelabel", "--run", run_id, "--to", folder / "after.tif", "--force")
        return list(_refusals(fork(slicelabel(*arguments), folder=folder), "export of the run"))


def _misses(ended: Ended) -> list[str]:
    """Return what is wrong with how a command ended that got Ctrl-C; it may have ended by itself before it heard."""
    said = "Interrupted." in ended.last_words and "Traceback" not in ended.err
    if (ended.code == 130 and said) or (ended.code == 0 and "Traceback" not in ended.err):
        return []
    return [f"Ctrl-C: exit {ended.code}: {ended.err.strip()[-200:]}"]


def names(folder: Path) -> frozenset[str]:
    """Return what lies in a folder, without what differs from run to run: their names, numbers of chunks."""
    found = (re.sub(r"runs/[^/]+", "runs/RUN", str(path.relative_to(folder))) for path in folder.rglob("*"))
    return frozenset(re.sub(r"\d+", "N", name) for name in found)


def _refusals(ended: Ended, action: str, *, may_refuse: bool = False) -> Iterator[str]:
    """Yield what is wrong with how a command ended: it must be done, or refuse in one line where it may."""
    if "Traceback" in ended.err:
        yield f"{action}: traceback: {ended.last_words}"
    elif ended.hung:
        yield f"{action}: hangs"
    elif ended.code == 2 and may_refuse:
        if not ended.last_words.startswith("slicelabel: "):
            yield f"{action}: exit 2 without a line"
    elif ended.code:
        yield f"{action}: exit {ended.code}: {ended.last_words}"


def _difference(result: Any, expected: Any) -> str:
    if isinstance(result, dict) and isinstance(expected, dict):
        keys = [key for key in {*result, *expected} if result.get(key) != expected.get(key)]
        return ", ".join(f"{key} {result.get(key)!r:.60} instead of {expected.get(key)!r:.60}" for key in keys)
    return f"{result!r:.80} instead of {expected!r:.80}"


def _expect(ended: Ended, action: str) -> None:
    if ended.code:
        raise RuntimeError(f"{action}: exit {ended.code}\n{ended.err}")


def storm(folder: Path, commands: Sequence[Command], kills: int, seed: int) -> Report:
    """Kill commands by turns until there were so many kills; return the report."""
    weather = Storm(folder)
    number = -1
    while weather.report.kills < kills:
        number += 1
        turn, place = divmod(number, len(commands))
        command = commands[place]
        if (turn + place) % command.turns and len(commands) > 1:
            continue
        rng = random.Random(f"{seed} {number}")
        begun = time.monotonic()
        kill = weather.draw(command, rng)
        struck = weather.strike(kill)
        late = "" if struck else " came too late"
        seconds = time.monotonic() - begun
        sys.stderr.write(f"{weather.report.kills} of {kills}: {kill}{late}, {seconds:.1f} s\n")
    return weather.report


def once_each(folder: Path, seed: int) -> Report:
    """Kill each command of the short form once, before a change of a file; return the report."""
    weather = Storm(folder)
    for command in COMMANDS.values():
        rng = random.Random(f"{seed} {command.name}")
        while command.short and not weather.strike(
            Kill(command.name, "change", rng.randint(1, weather.untouched(command).changes))
        ):
            pass
    return weather.report


def main() -> None:
    """Kill, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--again", nargs="+", metavar="KILL", help="names of kills, instead of new ones")
    parser.add_argument("--short", action="store_true", help="one kill of each command, as the tests do")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        folder = Path(scratch)
        if arguments.again:
            weather = Storm(folder)
            for name in arguments.again:
                weather.strike(Kill.of(name))
            report = weather.report
        elif arguments.short:
            report = once_each(folder, arguments.seed)
        else:
            report = storm(folder, [COMMANDS[name] for name in arguments.only], arguments.kills, arguments.seed)
    if arguments.report:
        arguments.report.write_text(json.dumps(vars(report), indent=1) + "\n", encoding="utf-8")
    print(report)
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
