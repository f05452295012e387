"""docs/tutorial.md, followed to the letter: what its numbered steps name is clicked and pressed in real napari.

A step is done in the order in which it names menus (*A > B*), buttons and sections (*words*) and keys (**N**). What
cannot be named so is in comments that readers do not see: ``paint: 1`` paints a class of the slice, ``then: words`` is
a check below. Buttons and keys that the other paragraphs name must exist.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from qtpy.QtWidgets import QAbstractButton, QApplication, QComboBox, QFileDialog, QLabel, QMenu
from tests.gui.gates import put_gate

from napari_slicelabel.data.formats import open_labels
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine.events import Progress
from napari_slicelabel.gui import plugin
from napari_slicelabel.gui.session import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gui.conftest import Bench
    from tests.gui.gates import Gate

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
# A small part of the sample that readers open (tests/gui/test_manifest.py); a run in earnest takes minutes.
SHAPE = (24, 64, 64)
HARDLY_TRAINED = {
    "iterations": 4,
    "rounds": 2,
    "round_iterations": 2,
    "fold_iterations": 2,
    "flow_iterations": 2,
    "width": 8,
    "batch": 2,
    "crop_px": 32,
    "device": "cpu",
}
_STEP = re.compile(r"^(\d+)\. (.*(?:\n   .*)*)", re.MULTILINE)
_NAMED = re.compile(r"\*\*(?P<key>[^*]+)\*\*|\*(?P<words>[^*]+)\*|<!-- (?P<remark>.+?) -->|!\[.*?\]\(.*?\)")


def named(text: str) -> Iterator[tuple[str, str]]:
    """Yield ("key" | "words" | "remark", text) in the order in which a text names them."""
    for match in _NAMED.finditer(text):
        if match.lastgroup is not None:
            yield match.lastgroup, " ".join(match[match.lastgroup].split())


def steps() -> list[tuple[int, str]]:
    return [(int(number), text) for number, text in _STEP.findall(TUTORIAL.read_text("utf-8"))]


class Reader:
    """Someone who does what the tutorial says."""

    def __init__(self, bench: Bench, target: Path, gate: Gate) -> None:
        self.bench = bench
        self.target = target
        self.truth: Any = None
        self.runs = 0
        # a run does not end before it was seen
        self.gate = gate

    def do(self, kind: str, text: str) -> None:
        if kind == "key":
            self.bench.press(text)
        elif kind == "words":
            self.menu(text) if ">" in text else self.click(text)
        else:
            what, _, argument = text.partition(": ")
            getattr(self, what.replace(" ", "_"))(*([argument] if argument else []))

    def menu(self, path: str) -> None:
        self.bench.choose(*(title.strip() for title in path.split(">")))
        if self.truth is None:
            self.truth = self.bench.viewer.layers["synthetic_em truth"].data
            assert self.bench.viewer.layers["synthetic_em"].data.shape == SHAPE

    def click(self, words: str) -> None:
        """Click what has these words on it; a section is opened by its heading."""
        self.bench.settle() if self.bench.workspace.session else None
        if words == "Run":
            panel = self.bench.panel("PropagatePanel")
            panel.form.set_config(panel.form.config().model_copy(update=HARDLY_TRAINED))
            self.bench.session.set_config(panel.config())
            self.bench.settle()
        found = [b for b in self.bench.dock.findChildren(QAbstractButton) if b.isVisible() and caption(b) == words]
        assert len(found) == 1, f"{len(found)} of {words!r} on the screen"
        if found[0].isCheckable() and found[0].isChecked():
            return
        self.bench.click(found[0])

    # -- remarks ------------------------------------------------------------------------------------------------------

    def paint(self, value: str) -> None:
        """Draw one stroke of a class with the mouse, then let the rest of it appear."""
        session, ref = self.bench.session, self.bench.session.current
        assert session.labels.selected_label == int(value)
        mine = self.truth[ref.index] == int(value)
        # the one nearest to the middle is on the screen
        y, x = min(
            np.argwhere(mine).tolist(), key=lambda place: np.hypot(place[0] - SHAPE[1] / 2, place[1] - SHAPE[2] / 2)
        )
        session.labels.brush_size = 1
        before = np.count_nonzero(session.store.read_plane(ref) == int(value))
        self.bench.drag((y, x), (y, x + 1))
        assert np.count_nonzero(session.store.read_plane(ref) == int(value)) > before
        session.labels.data[ref.index, :, :] = np.where(mine, int(value), session.store.read_plane(ref))

    def paint_the_others(self) -> None:
        """Do steps 5 to 8 again for the slices that are left."""
        again = [item for number, text in steps() if number in (5, 6, 7, 8) for item in named(text)]
        repeated = [item for item in again if item[0] == "key" or item[1].startswith("paint: ")]
        for _ in range(4):
            self.bench.wait(lambda: self.bench.snapshot.next_proposal == self.bench.session.current)
            self.bench.session.choose_class(1)
            for item in repeated:
                self.do(*item)
            self.bench.settle()
        assert [row.state for row in self.bench.snapshot.proposals] == ["complete"] * 5

    def wait(self, what: str) -> None:
        assert what == "finished"
        self.runs += 1
        self.bench.wait(lambda: len(self.bench.session.project.run_ids()) == self.runs)
        self.bench.wait(lambda: not self.bench.session.worker.state.active)
        self.bench.settle()
        assert self.bench.session.worker.state.phase == what, self.bench.session.worker.state.error
        assert np.isfinite(self.bench.snapshot.project.scores.confidence).all()

    def then(self, what: str) -> None:
        getattr(self, f"check_{what.replace(' ', '_')}")()

    def check_started(self) -> None:
        self.bench.wait(lambda: self.bench.workspace.session is not None)
        self.bench.settle()
        assert [item.name for item in self.bench.session.project.classes] == ["mitochondrion", "membrane"]

    def check_proposed(self) -> None:
        self.bench.wait(lambda: len(self.bench.snapshot.proposals) == 5)
        self.bench.settle()
        assert self.bench.session.current == self.bench.snapshot.proposals[0].ref

    def check_one_slice_complete(self) -> None:
        self.bench.settle()
        assert [row.state for row in self.bench.snapshot.proposals] == ["complete"] + ["proposed"] * 4

    def check_running(self) -> None:
        self.bench.wait(lambda: self.bench.session.worker.state.active)
        self.bench.wait(lambda: self.bench.panel("PropagatePanel").pause.isVisible())
        self.gate.open()

    def check_at_a_doubtful_slice(self) -> None:
        assert self.bench.session.current.index in [row.index for row in self.bench.snapshot.queue]

    def check_accepted(self) -> None:
        self.bench.settle()
        session = self.bench.session
        assert session.current.index in session.store.complete("z")
        assert session.current.index not in [row.index for row in self.bench.snapshot.queue]

    def check_corrected(self) -> None:
        self.bench.settle()
        session = self.bench.session
        assert len(session.store.complete("z")) == 7
        assert session.current.index in session.store.complete("z")

    def check_exported(self) -> None:
        self.bench.settle()
        written = np.asarray(open_labels(self.target).as_dask()).reshape(self.truth.shape)
        for row in self.bench.snapshot.proposals:
            painted = self.bench.session.store.read_plane(row.ref)
            assert np.array_equal(written[row.ref.index], painted), "what was painted comes out as it was painted"
            assert (painted == self.truth[row.ref.index]).mean() > 0.99


def caption(button: QAbstractButton) -> str:
    """Return what a button says, without its key."""
    return re.sub(r" \([\w+]+\)$", "", " ".join(button.text().replace("&&", "&").split()))


@pytest.fixture
def reader(window: Bench, monkeypatch: pytest.MonkeyPatch) -> Reader:
    # projects of images that lie in no file go into the home folder
    monkeypatch.setenv("HOME", str(window.folder))
    monkeypatch.setattr(Path, "home", lambda: window.folder)
    monkeypatch.setattr(plugin, "synthetic_em", lambda: synthetic_em(SHAPE))
    target = window.folder / "labels.ome.zarr"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_args, **_kwargs: (str(target), ""))
    return Reader(window, target, put_gate(monkeypatch, lambda event: isinstance(event, Progress)))


@pytest.mark.timeout(600)  # two runs, and a hundred moves of the mouse in between
def test_the_tutorial(reader: Reader) -> None:
    done = []
    for _, text in steps():
        for kind, words in named(text):
            reader.do(kind, words)
            done.append(words)
    assert [number for number, _ in steps()] == list(range(1, 15))
    assert done[-1] == "then: exported"
    names_in_the_other_paragraphs_exist(reader)


def names_in_the_other_paragraphs_exist(reader: Reader) -> None:
    """Look for every button, field, menu and key that is named between the steps."""
    dock = reader.bench.dock
    shown = {caption(button) for button in dock.findChildren(QAbstractButton)}
    shown |= {label.text() for label in dock.findChildren(QLabel)}
    shown |= {box.itemText(index) for box in dock.findChildren(QComboBox) for index in range(box.count())}
    menus = [widget for widget in QApplication.allWidgets() if isinstance(widget, QMenu)]
    shown |= {action.text().replace("&", "") for menu in menus for action in menu.actions()}
    shown |= {menu.title().replace("&", "") for menu in menus}
    keys = {key.replace("Control", "Ctrl").replace("-", "+") for key, _ in KEYS}
    rest = _STEP.sub("", TUTORIAL.read_text("utf-8"))
    for kind, words in named(rest.replace("*slanted*, keys are **bold**", "")):
        if kind == "key":
            assert words in keys
        elif kind == "words":
            missing = [part.strip() for part in words.split(">") if part.strip() not in shown]
            assert not missing, f"{missing} is nowhere in the window"


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", TUTORIAL.read_text("utf-8"))
    assert len(pictures) >= 4
    assert all((TUTORIAL.parent / picture).is_file() for picture in pictures)
