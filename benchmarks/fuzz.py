"""Damaged and odd inputs for every command: ``python -m benchmarks.fuzz --count 1000``.

Each input: a fresh copy of a folder, one file of it damaged (or the words of the command made up), the command in a
fork with little room and little time. It must do its work or refuse in one line, with exit code 0 or 2; and where a
reader can tell that a file is damaged, it must never give other voxels without a word. Each input has a name, such as
``image nii.gz:truncate:17``, from which all that is random follows; `fuzz_corpus.txt` lists those that ever failed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import damage
from benchmarks.forks import Ended, fork, slicelabel, warm_up
from benchmarks.fuzz_targets import TARGETS, Target
from benchmarks.kills import Projects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CORPUS = Path(__file__).with_name("fuzz_corpus.txt")
ROOM_MB = 2048
LONGEST_S = 30.0


@dataclass
class Report:
    """What came of the inputs."""

    inputs: int = 0
    refused: int = 0
    unharmed: int = 0
    done: int = 0
    undetectable: int = 0
    most_mb: int = 0
    longest_s: float = 0.0
    failures: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        kinds = ("traceback", "hang", "memory", "no clear line", "exit code", "accepted though damaged")
        failed = ", ".join(f"{len(self.failures.get(kind, ()))} {kind}" for kind in kinds)
        return (
            f"{self.inputs} inputs: {self.refused} refused, {self.unharmed} unharmed, {self.done} done, "
            f"{self.undetectable} with other values that no reader can tell; {failed}; "
            f"at most {self.most_mb} MB and {self.longest_s:.1f} s"
        )


class Fuzz:
    """Prepared folders, what commands give undamaged, and inputs.

    Parameters
    ----------
    folder : Path
        Scratch.
    """

    def __init__(self, folder: Path) -> None:
        self.report = Report()
        self._projects = Projects(folder)
        self._undamaged: dict[str, Any] = {}

    def undamaged(self, target: Target) -> Any:
        """Return what the command of a target gives where nothing is damaged."""
        if target.name not in self._undamaged:
            folder = self._projects.fresh(target.state)
            ended = fork(slicelabel(*target.command(folder)), folder=folder)
            self._undamaged[target.name] = "refused" if ended.code else _result(target, folder)
            if ended.code:
                sys.stderr.write(f"{target.name}: refused although nothing is damaged: {ended.last_words}\n")
        return self._undamaged[target.name]

    def feed(self, name: str) -> None:
        """Hand one input to its command, and judge what comes of it."""
        title, kind, _ = name.rsplit(":", 2)
        target, rng = TARGETS[title], random.Random(name)
        expected = self.undamaged(target) if target.files else None
        folder = self._projects.fresh(target.state)
        if target.words is not None:
            words = target.words(folder, kind, rng)
        else:
            words = target.command(folder)
            if not _damage(target, kind, folder, rng):
                return
        ended = fork(_keeping_logs(slicelabel(*words), folder), folder=folder, room_mb=ROOM_MB, hanging=LONGEST_S)
        self.report.inputs += 1
        self.report.most_mb = max(self.report.most_mb, ended.grown_mb)
        self.report.longest_s = max(self.report.longest_s, ended.seconds)
        failure = _failure(ended)
        if failure:
            self._fail(name, failure, ended.last_words)
        elif ended.code == 2:
            self.report.refused += 1
        elif not target.files:
            self.report.done += 1
        else:
            self._compare(name, target, kind, expected, _result(target, folder))

    def _compare(self, name: str, target: Target, kind: str, expected: Any, result: Any) -> None:
        if isinstance(result, Ended):
            self._fail(name, "traceback", f"when its result is read: {result.last_words}")
        elif result == "refused":
            self.report.refused += 1
        elif result == expected:
            self.report.unharmed += 1
        elif target.tells(kind):
            self._fail(name, "accepted though damaged", f"{result!r:.60} instead of {expected!r:.60}")
        else:
            self.report.undetectable += 1

    def _fail(self, name: str, failure: str, words: str) -> None:
        self.report.failures[failure].append({"input": name, "words": words})
        sys.stderr.write(f"{failure}: {name}: {words[:300]}\n")


def _keeping_logs(work: Callable[[], int], folder: Path) -> Callable[[], int]:
    """Return a command whose temporary files, tracebacks among them, lie in a folder."""

    def inside() -> int:
        tempfile.tempdir = str(folder)
        return work()

    return inside


def _damage(target: Target, kind: str, folder: Path, rng: random.Random) -> bool:
    """Damage one of the files of a target; return False where none is there, or has anything to damage."""
    files = sorted(path for path in folder.glob(target.files) if path.is_file())
    files = [path for path in files if path.stat().st_size or kind in damage.OF_NAMES]
    if not files:
        return False
    damage.ALL[kind](rng.choice(files), rng)
    return True


def _result(target: Target, folder: Path) -> Any:
    """Return what a command gave, "refused" where the package refuses to read it, how it ended where that fails."""

    def read() -> None:
        from napari_slicelabel.errors import SliceLabelError

        try:
            print(json.dumps(target.result(folder)))
        except SliceLabelError:
            print(json.dumps("refused"))

    ended = fork(read, folder=folder, hanging=LONGEST_S)
    return ended if ended.code else ended.answer


def _failure(ended: Ended) -> str:
    """Return what is wrong with how a command ended, or ""."""
    if ended.hung:
        return "hang"
    if ended.grown_mb > ROOM_MB:
        return "memory"
    if "Traceback" in ended.err or "Please report it" in ended.last_words:
        return "traceback"
    if ended.code not in (0, 2):
        return "exit code"
    if ended.code == 2 and not _is_clear(ended.last_words):
        return "no clear line"
    return ""


def _is_clear(line: str) -> bool:
    return line.startswith("slicelabel: ") and len(line) > len("slicelabel: ") + 8


def names(seed: int) -> Iterator[str]:
    """Yield names of inputs without an end: the targets by turns, each with a kind of damage that is drawn."""
    for turn in count():
        for target in TARGETS.values():
            for number in range(turn * target.weight, (turn + 1) * target.weight):
                kind = random.Random(f"{seed} {target.name} {number}").choice(target.kinds)
                yield f"{target.name}:{kind}:{seed * 1_000_000 + number}"


def corpus() -> list[str]:
    """Return the names of the inputs that ever failed."""
    lines = CORPUS.read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fuzz(folder: Path, known: Iterable[str], new: Iterator[str], count: int) -> Report:
    """Hand known inputs to their commands, and so many new ones; return the report."""
    feeding = Fuzz(folder)
    for name in known:
        feeding.feed(name)
    end = feeding.report.inputs + count
    # a name of which there is no file to damage is no input
    while feeding.report.inputs < end:
        feeding.feed(next(new))
        if feeding.report.inputs % 50 == 0:
            sys.stderr.write(f"{feeding.report}\n")
    return feeding.report


def main() -> None:
    """Feed, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), metavar="TARGET", help="only these targets")
    parser.add_argument("--again", nargs="+", metavar="INPUT", help="names of inputs, instead of new ones")
    parser.add_argument("--corpus", action="store_true", help="all that ever failed before new ones")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    new = (name for name in names(arguments.seed) if not arguments.only or name.rsplit(":", 2)[0] in arguments.only)
    known = arguments.again or (corpus() if arguments.corpus else [])
    warm_up()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        report = fuzz(Path(scratch), known, new, 0 if arguments.again else arguments.count)
    if arguments.report:
        arguments.report.write_text(json.dumps(vars(report), indent=1) + "\n", encoding="utf-8")
    print(report)
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
