"""What a person decides besides painting: how far labels go, which classes there are, which volume is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QAbstractSpinBox
from tests.gui.test_workflow import choose, run_to_end

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.classes import NOT_PAINTED
from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.events import SliceDone
from napari_slicelabel.engine.record import read_events
from napari_slicelabel.engine.select import SELECTORS
from napari_slicelabel.gui.layers import KEY
from napari_slicelabel.gui.session import SELECTION

if TYPE_CHECKING:
    import pytest
    from tests.gui.conftest import Bench

    from napari_slicelabel.data.samples import Sample


def strip_of(bench: Bench) -> object:
    from napari_slicelabel.gui.slice_strip import SliceStrip

    return next(strip for strip in bench.dock.window().findChildren(SliceStrip) if strip.isVisible())


def written(bench: Bench) -> list[int]:
    """Return the slices that the run on the screen wrote, in order."""
    journal = bench.session.project.run_folder(bench.snapshot.project.shown_run) / "events.jsonl"
    return [event.index for event in read_events(journal) if isinstance(event, SliceDone)]


def test_stops_and_range_are_set_on_the_strip(bench: Bench, stack: Sample) -> None:
    """Alt and a click set a stop, a drag sets the range; the form, the plan and the run know of both."""
    bench.start(stack.image)
    bench.paint_truth(stack.labels, [4, 12])
    choose(bench, "interpolate")
    strip = strip_of(bench)
    middle = strip.height() // 2
    alt = Qt.KeyboardModifier.AltModifier
    bench.qtbot.mouseClick(strip, Qt.MouseButton.LeftButton, alt, QPoint(round(strip.x_of(8)), middle))
    bench.settle()
    panel = bench.panel("PropagatePanel")
    assert panel.config().stops == "8"
    assert bench.snapshot.plan.slices == 15
    left, right = (QPoint(round(strip.x_of(index)), middle) for index in (2, 13))
    bench.qtbot.mousePress(strip, Qt.MouseButton.LeftButton, pos=left)
    bench.qtbot.mouseMove(strip, QPoint((left.x() + right.x()) // 2, middle))
    bench.qtbot.mouseMove(strip, right)
    bench.qtbot.mouseRelease(strip, Qt.MouseButton.LeftButton, pos=right)
    bench.settle()
    assert panel.config().range == "2:14"
    assert bench.snapshot.plan.slices == 11
    # another method keeps what was chosen
    panel.method.setCurrentIndex(panel.method.findData("self-label"))
    assert (panel.config().range, panel.config().stops) == ("2:14", "8")
    panel.method.setCurrentIndex(panel.method.findData("interpolate"))
    run_to_end(bench)
    assert sorted(written(bench)) == [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    assert not bench.session.prediction.data[8, :, :].any()
    bench.qtbot.mouseClick(strip, Qt.MouseButton.LeftButton, alt, QPoint(round(strip.x_of(8)), middle))
    bench.settle()
    assert panel.config().stops == "none"


def test_the_slice_on_the_canvas_is_labelled_first(bench: Bench, stack: Sample) -> None:
    bench.start(stack.image)
    bench.paint_truth(stack.labels, [4, 12])
    choose(bench, "interpolate")
    bench.session.jump(SliceRef("z", 9))
    run_to_end(bench)
    assert written(bench)[:2] == [9, 0]


def test_comparing_slices_shows_how_far_it_is_and_can_be_given_up(
    bench: Bench, stack: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start(stack.image)
    select = bench.panel("SelectPanel")
    select.budget.setValue(3)
    bench.click(select.propose)
    bench.wait(lambda: len(bench.snapshot.proposals) == 3)
    before = bench.snapshot.proposals
    select.method.setCurrentIndex(select.method.findData("representative"))
    monkeypatch.setattr("napari_slicelabel.engine.select.features.MOST_STEPS", 100_000)
    bench.click(select.propose)
    bench.wait(lambda: bench.snapshot.layers.choosing is not None and bench.snapshot.layers.choosing.done > 0)
    bench.wait(lambda: select.propose.isHidden() and select.bar.value() > 0)
    # short jobs do not wait for it
    bench.session.jump(SliceRef("z", 2))
    bench.drag((20, 20), (20, 30))
    bench.press("Ctrl+Z")
    bench.click(select.give_up)
    bench.wait(lambda: bench.snapshot.layers.choosing is None)
    assert bench.snapshot.proposals == before
    monkeypatch.setattr("napari_slicelabel.engine.select.features.MOST_STEPS", 5)
    bench.wait(lambda: not select.propose.isHidden())
    bench.click(select.propose)
    bench.wait(lambda: bench.snapshot.layers.choosing is None and bool(bench.snapshot.project.coverage))
    assert len(bench.snapshot.proposals) == 3


def test_one_budget_for_two_volumes_with_options(bench: Bench, stack: Sample) -> None:
    """What is said under Advanced reaches the ranking, with the slices skipped in the list and the range of the run."""
    bench.start(stack.image)
    select = bench.panel("SelectPanel")
    assert select.options.editors["volumes"].isHidden()
    for method, selector in SELECTORS.items():
        select.method.setCurrentIndex(select.method.findData(method))
        assert select.known.text() == selector.known
    select.method.setCurrentIndex(0)
    bench.session.set_range(1, 15)
    select.budget.setValue(3)
    bench.click(select.propose)
    bench.wait(lambda: len(bench.snapshot.proposals) == 3)
    first = bench.snapshot.proposals[0].ref
    bench.session.skip(first)
    bench.click(select.propose)
    bench.wait(lambda: first not in [row.ref for row in bench.snapshot.proposals])
    ranking = bench.session.project.ranking(SELECTION)
    assert ranking["options"]["range"] == "1:15"
    assert ranking["options"]["skip"] == [f"stack:{first}"]
    layer = bench.viewer.add_image(stack.image[::-1].copy(), name="turned")
    bench.workspace.add_volume(layer)
    bench.wait(lambda: bench.workspace.session is not None and bench.session.volume == "turned")
    bench.settle()
    assert not select.options.editors["volumes"].isHidden()
    editors = select.options.editors
    editors["volumes"].setCurrentIndex(editors["volumes"].findData("all"))
    editors["range"].setText("2:14")
    editors["skip"].setText("stack:z3")
    select.method.setCurrentIndex(select.method.findData("random"))
    editors["seed"].setValue(4)
    select.budget.setValue(8)
    bench.click(select.propose)
    bench.wait(lambda: bench.session.project.ranking(SELECTION)["method"] == "random")
    bench.settle()
    ranking = bench.session.project.ranking(SELECTION)
    assert (ranking["volumes"], ranking["seed"]) == (["stack", "turned"], 4)
    assert (ranking["options"]["range"], ranking["options"]["skip"]) == ("2:14", ["stack:z3"])
    mine = [item["index"] for item in ranking["order"] if item["volume"] == "turned"]
    assert [row.ref.index for row in bench.snapshot.proposals] == mine
    assert 0 < len(mine) < 8


def test_a_painted_class_is_removed_and_brought_back(bench: Bench, stack: Sample) -> None:
    """Its paint is erased or goes to another class, in all orientations; undo brings class and paint back."""
    bench.start(stack.image)
    table = bench.panel("VolumePanel").table
    bench.click(table._add)
    bench.wait(lambda: len(bench.session.project.classes) == 2)
    bench.settle()
    gone = bench.session.project.classes[1]
    bench.session.choose_class(gone.id)
    bench.session.jump(SliceRef("z", 5))
    bench.drag((20, 20), (20, 40))
    bench.session.jump(SliceRef("y", 30))
    bench.session.labels.brush_size = 4
    bench.drag((5, 30), (9, 30))
    bench.settle()
    across = bench.session.store.read_plane(SliceRef("y", 30))
    mine = bench.session.store.read_plane(SliceRef("z", 5))
    assert (mine == gone.id).sum() > 100
    table.set_current(gone.id)
    bench.click(table._remove)
    panel = bench.panel("VolumePanel")
    bench.wait(lambda: getattr(panel, "removal", None) is not None)
    assert "2 slices" in panel.removal.question.text()
    panel.removal.target.setCurrentIndex(1)
    bench.click(panel.removal.remove)
    bench.wait(lambda: len(bench.session.project.classes) == 1)
    bench.settle()
    first = bench.session.project.classes[0].id
    for ref, before in ((SliceRef("z", 5), mine), (SliceRef("y", 30), across)):
        plane = bench.session.store.read_plane(ref)
        assert np.array_equal(plane, np.where(before == gone.id, first, before))
    bench.press("Ctrl+Z")
    bench.settle()
    assert np.array_equal(bench.session.store.read_plane(SliceRef("z", 5)), mine)
    assert gone in bench.session.project.classes
    bench.session.remove_class(gone.id, becomes=NOT_PAINTED)
    bench.wait(lambda: len(bench.session.project.classes) == 1)
    bench.settle()
    assert not bench.session.store.read_plane(SliceRef("y", 30)).any()
    again = Project.open(bench.session.project.path)
    assert [item.id for item in again.classes] == [first]
    assert not again.annotation("stack").read_slice(SliceRef("z", 5)).any()


def test_what_a_sample_says_of_itself_stays(bench: Bench, stack: Sample) -> None:
    """Classes and source of a sample are in the metadata of its image, before and after labelling begins."""
    about = {"classes": ["one", "two"], "source": "a paper"}
    bench.start(stack.image, metadata={KEY: dict(about)})
    kept = bench.session.image.metadata[KEY]
    assert {name: kept[name] for name in about} == about
    assert kept["role"] == "image"


def test_a_second_volume_is_added_and_the_first_comes_back(bench: Bench, stack: Sample) -> None:
    """Two images in one project: what was painted in each stays, and at most four of our layers are there."""
    bench.start(stack.image)
    bench.session.jump(SliceRef("z", 3))
    bench.drag((20, 20), (20, 40))
    bench.settle()
    first = bench.session.store.read_plane(SliceRef("z", 3))
    panel = bench.panel("VolumePanel")
    bench.viewer.add_image(stack.image[:, ::-1].copy(), name="mirrored")
    # its section may be folded by now
    bench.wait(lambda: panel.others.count() == 1)
    assert panel.others.currentText() == "mirrored"
    bench.click(panel.add)
    bench.wait(lambda: bench.workspace.session is not None and bench.session.volume == "mirrored")
    bench.settle()
    assert bench.session.project.names == ("stack", "mirrored")
    assert sorted(layer.name for layer in bench.viewer.layers) == ["mirrored", "mirrored labels", "stack"]
    assert not bench.viewer.layers["stack"].visible
    bench.session.jump(SliceRef("z", 3))
    assert not bench.session.store.read_plane(SliceRef("z", 3)).any()
    bench.drag((40, 20), (40, 30))
    bench.settle()
    second = bench.session.store.read_plane(SliceRef("z", 3))
    assert second.any()
    for name, expected in (("stack", first), ("mirrored", second)):
        bench.wait(lambda: not panel.volumes.isHidden())
        panel.volumes.setCurrentText(name)
        panel.volumes.activated.emit(panel.volumes.currentIndex())
        bench.wait(lambda name=name: bench.workspace.session is not None and bench.session.volume == name)
        bench.settle()
        assert np.array_equal(bench.session.store.read_plane(SliceRef("z", 3)), expected)
        assert bench.viewer.layers[name].visible
        assert len(bench.viewer.layers) == 3
    choose(bench, "interpolate")
    run_to_end(bench)
    assert bench.session.worker.state.phase == "finished", bench.session.worker.state.error
    assert bench.session.worker.state.written == 32
    bench.click(panel.remove)
    bench.wait(lambda: bench.workspace.session is not None and bench.session.volume == "stack")
    assert bench.session.project.names == ("stack",)
    assert np.array_equal(bench.session.store.read_plane(SliceRef("z", 3)), first)


def test_numbers_can_be_read_in_the_forms_of_all_methods(bench: Bench, stack: Sample) -> None:
    """In the dock as it opens, with everything unfolded: no digit is cut off by the buttons beside it."""
    bench.start(stack.image)
    panel = bench.panel("PropagatePanel")
    for section in bench.dock.sections:
        section.set_open(section.panel is panel)
    boxes = 0
    for number in range(panel.method.count()):
        panel.method.setCurrentIndex(number)
        panel.form.fold.set_open(True)
        # names of what was changed are bold, and leave less room
        is_long = panel.method.currentData() == "self-train"
        changed = {"learning_rate": 0.0005, "random_iterations": 15} if is_long else {}
        panel.form.set_config(panel.form.config().model_copy(update=changed))
        bench.settle()
        for box in panel.form.findChildren(QAbstractSpinBox):
            line = box.lineEdit()
            # the margins of a line edit, left and right, are 2 px each
            assert line.width() - 4 >= line.fontMetrics().horizontalAdvance(box.text()), box.accessibleName()
            boxes += 1
    assert boxes > 50
