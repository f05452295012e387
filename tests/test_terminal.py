from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel import terminal
from napari_slicelabel.engine.events import Finished, Metric, Progress, Started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_slicelabel.engine.events import Event


@dataclass
class _Record:
    name: str
    where: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": float("nan"), "b": [np.inf, 1.5]}, {"a": None, "b": [None, 1.5]}),
        ({1: np.float32(0.5), "n": np.int64(3)}, {"1": 0.5, "n": 3}),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (_Record("µ", Path("a") / "b"), {"name": "µ", "where": str(Path("a") / "b")}),
        ({"brackets": ["[ a ]", "x  ]"], "empty": []}, {"brackets": ["[ a ]", "x  ]"], "empty": []}),
        ({"set": (True, None)}, {"set": [True, None]}),
    ],
    ids=["not finite", "numpy numbers", "array", "dataclass", "brackets in text", "constants"],
)
def test_emit_writes_strict_json(value: object, expected: object, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.emit(value)
    out = capsys.readouterr().out

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(out, parse_constant=refuse) == expected
    assert out.endswith("\n")


def test_emit_puts_a_list_of_numbers_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.emit({"shape": [1, 2, 3]})
    assert capsys.readouterr().out == '{\n  "shape": [1, 2, 3]\n}\n'


def test_lines_say_stage_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = terminal._Lines(clock=lambda: now[0])
    for done in range(31):
        now[0] = float(done)
        lines.update("fit", done, 30, "loss 0.2")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "fit: 0/30, loss 0.2"
    assert said[1] == "fit: 5/30, 25 s left, loss 0.2"
    assert len(said) == 7


def test_numbers_of_a_stage_are_not_repeated_by_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    def events() -> Iterator[Event]:
        yield Progress("calibrate", 1, 1, "a z3")
        yield Metric("temperature", 1.5, 0)
        yield Metric("held_out_dice", 0.75, 0)
        yield Metric("loss", 0.25, 10)
        yield Progress("fit", 11, 20)
        yield Progress("predict", 1, 1)
        yield Metric("churn", 0.5, 1)
        yield Finished("r1", "finished", 1.0, {})

    list(terminal.follow(events()))
    assert capsys.readouterr().err.splitlines() == [
        "calibrate: 1/1, a z3",
        "calibrate: temperature 1.5, held_out_dice 0.75, loss 0.25",
        "fit: 11/20",
        "predict: 1/1",
        "predict: churn 0.5",
    ]


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")

    def events() -> Iterator[Event]:
        yield Started("r1", "m", "/f", ("v",), "z", 3)
        yield Metric("loss", 0.25, 1)
        for _ in range(2):  # a stage comes again in every round
            for done in range(4):
                yield Progress("fit", done, 3)
        yield Progress("predict", 3, 3)

    assert len(list(terminal.follow(events()))) == 11
    shown = capsys.readouterr().err
    for words in ("fit", "predict", "3/3", "loss 0.25"):
        assert words in shown


def test_follow_closes_the_run_when_the_consumer_stops() -> None:
    closed = []

    def events() -> Iterator[Event]:
        try:
            yield from (Progress("fit", done, 9) for done in range(9))
        finally:
            closed.append(True)

    shown = terminal.follow(events())
    next(shown)
    shown.close()  # type: ignore[attr-defined]
    assert closed == [True]
