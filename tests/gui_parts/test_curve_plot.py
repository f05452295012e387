from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_slicelabel.gui.axes import nice_ticks
from napari_slicelabel.gui.curve_plot import _MOST_POINTS, CurvePlot, _Curve, _round_up, _thinned, _usual_top

if TYPE_CHECKING:
    from pytestqt.qtbot import QtBot

    from conftest import Shoot, Show


def losses(count: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(0)
    return [(10 * k, 0.08 + 1.4 * math.exp(-k / 12) + rng.normal(0, 0.02)) for k in range(1, count + 1)]


def test_a_storm_of_points_is_few_redraws(qtbot: QtBot, show: Show) -> None:
    plot = CurvePlot()
    show(plot, 320)
    qtbot.wait(50)
    redraws: list[None] = []
    plot.repainted.connect(lambda: redraws.append(None))
    begin = time.monotonic()
    for burst in range(20):
        for k in range(500):
            plot.add_loss(burst * 500 + k, 1 / (1 + burst))
        qtbot.wait(20)
    qtbot.wait(150)
    # one in 100 ms, for as long as this took
    assert 2 <= len(redraws) <= 2 + 10 * (time.monotonic() - begin)
    assert plot.summary == "step 9999: loss 0.05"
    assert plot.accessibleDescription() == plot.summary


def test_nothing_is_painted_while_hidden(qtbot: QtBot) -> None:
    plot = CurvePlot()
    qtbot.addWidget(plot)
    with qtbot.assertNotEmitted(plot.repainted, wait=250):
        plot.add_loss(1, 0.5)
        plot.add_dice(1, 0.5)


def test_a_long_run_stays_small_and_keeps_its_ends() -> None:
    curve = _Curve()
    for step in range(50_001):
        curve.add(step, step / 10)
    points = curve.points()
    assert len(points) <= _MOST_POINTS + 1
    assert points[0] == (0, 0.0)
    assert points[-1] == (50_000, 5000.0)
    assert points == sorted(points)


def test_a_resumed_run_replaces_what_it_does_again() -> None:
    curve = _Curve()
    for step, value in ((10, 1.0), (20, 0.5), (30, 0.4), (20, 0.6), (30, 0.3)):
        curve.add(step, value)
    assert curve.points() == [(10, 1.0), (20, 0.6), (30, 0.3)]


def test_what_is_not_finite_is_left_out(qtbot: QtBot) -> None:
    plot = CurvePlot()
    qtbot.addWidget(plot)
    plot.set_points([(1, math.nan), (2, 0.5)], [(1, math.inf)])
    plot.add_dice(3, math.nan)
    assert plot.summary == "step 2: loss 0.5"
    plot.clear()
    assert plot.summary.startswith("Loss and held-out Dice appear here")


def test_thinning_keeps_the_spikes(qtbot: QtBot) -> None:
    plot = CurvePlot()
    qtbot.addWidget(plot)
    plot.resize(200, 130)
    points = [(float(k), 0.5) for k in range(3000)]
    points[1234] = (1234.0, 0.9)
    plot.set_points(points, [])
    thin = _thinned(points, plot._axes((0.0, 1.0)))
    assert len(thin) < 500
    assert (1234.0, 0.9) in thin


def test_tool_tip_has_both_values(qtbot: QtBot, show: Show) -> None:
    plot = CurvePlot()
    plot.set_points([(100, 0.5), (200, 0.25)], [(100, 0.8), (200, 0.9)])
    show(plot, 320)
    assert plot.tip_at(5000) == "step 200: loss 0.25, held-out Dice 0.9"
    assert plot.tip_at(plot._axes((0, 1)).left(101)) == "step 101: loss 0.5, held-out Dice 0.8"


@pytest.mark.parametrize(
    ("values", "top"), [([], 1.0), ([0.5] * 10, 0.6), ([100.0] + [0.9] * 99, 1.0), ([3e-7], 4e-7), ([0.0], 1e-9)]
)
def test_the_loss_fits(values: list[float], top: float) -> None:
    assert _round_up(_usual_top(values)) == pytest.approx(top)


@pytest.mark.parametrize(("low", "high", "most"), [(0, 1, 1), (0, 3, 2), (0, 1e6, 7), (0, 7, 3), (0.0, 0.001, 4)])
def test_ticks_are_inside_and_few(low: float, high: float, most: int) -> None:
    ticks = nice_ticks(low, high, most)
    assert 2 <= len(ticks) <= 2 * most + 1
    assert low <= ticks[0]
    assert ticks[-1] <= high * (1 + 1e-9)


def test_pictures(show: Show, shoot: Shoot, theme: str) -> None:
    dices = [(80 + 40 * k, 0.93 - 0.5 * math.exp(-k / 2)) for k in range(12)]
    for name, loss, dice, width in (
        ("both", losses(52), dices, 320),
        ("loss", losses(400), [], 260),
        ("first", [(10, 0.71)], [(10, 0.4)], 220),
        ("none", [], [], 260),
    ):
        plot = CurvePlot()
        plot.set_points(loss, dice)
        shoot(show(plot, width, None, theme), f"curve-{name}")
