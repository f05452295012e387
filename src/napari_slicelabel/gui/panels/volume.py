"""Volume & classes: what is labelled, where it is kept, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QMenu,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_slicelabel.data.classes import LabelClass
from napari_slicelabel.data.project import SUFFIX
from napari_slicelabel.errors import SliceLabelError
from napari_slicelabel.gui.class_table import ClassRow, ClassTable
from napari_slicelabel.gui.layers import KEY
from napari_slicelabel.gui.panels.base import Panel, button, changed, text_label
from napari_slicelabel.gui.problem import ProblemLabel
from napari_slicelabel.gui.recent import recent_projects
from napari_slicelabel.gui.removal import RemovalDialog
from napari_slicelabel.gui.starting import described_axes, suggested_folder

if TYPE_CHECKING:
    from napari_slicelabel.gui.state import ProjectFacts, Snapshot, Step
    from napari_slicelabel.gui.workspace import Workspace

_TIMES = " \N{MULTIPLICATION SIGN} "
_SIGNS = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "pixel": "px"}


class VolumePanel(Panel):
    """Choose an image and begin; then the classes."""

    title = "Volume && classes"
    tip = "The image that is labelled, the folder that keeps the labels, and the classes."
    steps: ClassVar[tuple[Step, ...]] = ("open",)

    def __init__(self, workspace: Workspace, parent: QWidget | None = None) -> None:
        super().__init__(workspace, parent)
        self.projects = self._make_projects()
        self.column.addWidget(self.projects)
        self._beginning = self._make_beginning()
        self._going = self._make_going()
        self.column.addWidget(self._beginning)
        self.column.addWidget(self._going)
        workspace.session_changed.connect(self._new_session)
        workspace.axes_known.connect(self._show_axes)
        workspace.folder_proposed.connect(self.folder.setText)
        self._new_session()

    def _new_session(self) -> None:
        if self.session is not None:
            self.session.removal_asked.connect(self._ask_removal)

    def _make_projects(self) -> QPushButton:
        made = QPushButton("Projects")
        made.setToolTip("Close this project, begin a new one, or go on with another.")
        self._menu = QMenu(made)
        self._menu.aboutToShow.connect(self._fill_menu)
        made.setMenu(self._menu)
        return made

    def _fill_menu(self) -> None:
        menu = self._menu
        menu.clear()
        if self.session is not None:
            # the beginning shows once none is open
            menu.addAction("New project", self.workspace.close_project)
        menu.addAction("Open …", self._open)
        if self.session is not None:
            menu.addAction("Close", self.workspace.close_project)
        current = self.session.project.path if self.session is not None else None
        others = [path for path in recent_projects() if path != current]
        if others:
            menu.addSection("Recent")
        for path in others:
            action = menu.addAction(path.name, lambda path=path: self.workspace.open_project(path))
            if action is not None:
                action.setToolTip(str(path))

    def _make_beginning(self) -> QWidget:
        box = QWidget()
        column = QVBoxLayout(box)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        self.empty = text_label("Open a 3D image in napari first (File > Open), or try File > Open Sample.")
        self.images = QComboBox()
        self.images.setToolTip("The image to label.")
        self.images.currentTextChanged.connect(self._suggest)
        self.folder = QLineEdit()
        self.folder.setToolTip(
            f"The project: a folder ending in {SUFFIX} that keeps labels and results. The image is not changed."
        )
        choose = QToolButton()
        choose.setText("…")
        choose.setToolTip("Choose another folder for the project.")
        choose.clicked.connect(lambda _checked=False: self._choose_folder())
        row = QHBoxLayout()
        row.addWidget(self.folder, 1)
        row.addWidget(choose)
        self.start = button("Start labelling", "Create the project and a layer to paint in.", self._start, primary=True)
        self.open = button("Open a project …", "Go on with a project folder.", self._open)
        self._caption = text_label("Project folder")
        self.meaning = QComboBox()
        self.meaning.setToolTip("What the axes of this image are; neither the image nor its file says so.")
        self.meaning.currentIndexChanged.connect(lambda _index: self._allow_start())
        self.meaning.setVisible(False)
        for item in (self.empty, self.images, self.meaning, self._caption):
            column.addWidget(item)
        column.addLayout(row)
        self._folder_row = (self.folder, choose)
        column.addWidget(self.start)
        column.addWidget(self.open)
        return box

    def _make_going(self) -> QWidget:
        box = QWidget()
        column = QVBoxLayout(box)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        self.facts = text_label()
        self.volumes = QComboBox()
        self.volumes.setToolTip("The volume of the project that is labelled here. A run learns from all of them.")
        self.volumes.activated.connect(lambda _index: self.workspace.open_volume(self.volumes.currentText()))
        self.others = QComboBox()
        self.others.setToolTip("Another image of the viewer, to label in the same project with the same classes.")
        self.add = button(
            "Add to the project", "Label this image too: one network learns from all volumes.", self._add_volume
        )
        self.remove = button(
            "Remove", "Take this volume out of the project; its image and paint are kept.", self._remove_volume
        )
        self._choosing = QWidget()
        row = QHBoxLayout(self._choosing)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.volumes, 1)
        row.addWidget(self.remove)
        for box_of_names in (self.volumes, self.others):
            box_of_names.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._adding = QWidget()
        row = QHBoxLayout(self._adding)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.others, 1)
        row.addWidget(self.add, 1)
        self.saved = text_label(tip="What you paint is written to the project within a second.")
        self.not_saved = ProblemLabel()
        self.show_labels = button(
            "Show the labels layer again", "The layer was removed; nothing that was painted is lost.", self._show_labels
        )
        self.table = ClassTable()
        self.table.class_selected.connect(self._choose_class)
        self.table.class_added.connect(self._add_class)
        self.table.class_removed.connect(self._remove_class)
        self.table.class_renamed.connect(lambda value, name: self._change_class(value, name=name))
        self.table.class_recolored.connect(lambda value, color: self._change_class(value, color=color))
        for item in (
            self._choosing,
            self.facts,
            self._adding,
            self.saved,
            self.not_saved,
            self.show_labels,
            self.table,
        ):
            column.addWidget(item)
        return box

    def summary(self, snapshot: Snapshot) -> str:
        """Return the volume's name and whether all is saved."""
        if snapshot.project is None:
            return ""
        return f"{snapshot.project.volume} · {'not saved!' if snapshot.project.saving.error else 'saved'}"

    def apply(self, new: Snapshot, old: Snapshot | None) -> None:
        """Show what differs."""
        project = new.project
        self._beginning.setVisible(project is None)
        self._going.setVisible(project is not None)
        if project is None:
            if changed(new, old, "layers.images", "project"):
                self._show_images(new.layers.images)
            self._allow_start()
            self.start.setText(self.workspace.busy or "Start labelling")
            return
        if changed(new, old, "project.path", "project.volume", "project.voxel_size"):
            self.facts.setText(_described(project))
            self.facts.setToolTip(project.path)
        if changed(new, old, "project.volumes", "project.volume", "run.phase"):
            self._show_volumes(project, busy=new.run.active)
        if changed(new, old, "layers.images", "run.phase", "project.path"):
            self.others.clear()
            self.others.addItems(list(new.layers.images))
            self._adding.setVisible(bool(new.layers.images) and not new.run.active)
        if changed(new, old, "saved"):
            self.saved.setVisible(not project.saving.error)
            self.saved.setText(f"✓ {new.saved}" if not project.saving.unsaved else new.saved)
            self.not_saved.set_problem(new.saved if project.saving.error else "")
        self.show_labels.setVisible(not new.layers.labels)
        if changed(new, old, "project.classes"):
            rows = [ClassRow(c.id, c.name, c.color) for c in project.classes]
            self.table.set_classes(rows, new.layers.selected)
        elif changed(new, old, "layers.selected"):
            self.table.set_current(new.layers.selected)

    def _show_volumes(self, project: ProjectFacts, *, busy: bool) -> None:
        self.volumes.clear()
        self.volumes.addItems(list(project.volumes))
        self.volumes.setCurrentText(project.volume)
        for widget in (self._choosing, self.volumes):
            widget.setVisible(len(project.volumes) > 1)
        self._choosing.setEnabled(not busy)

    def _add_volume(self) -> None:
        layer = self.workspace.images().get(self.others.currentText())
        if layer is not None:
            self.workspace.add_volume(layer)

    def _remove_volume(self) -> None:
        if self.session is not None:
            self.workspace.remove_volume(self.session.volume)

    def _show_images(self, names: tuple[str, ...]) -> None:
        chosen = self.images.currentText()
        self.images.blockSignals(True)
        self.images.clear()
        self.images.addItems(list(names))
        if chosen in names:
            self.images.setCurrentText(chosen)
        self.images.blockSignals(False)
        self.empty.setVisible(not names)
        for widget in (self.images, self._caption, *self._folder_row, self.start):
            widget.setVisible(bool(names))
        if self.images.currentText() != chosen or not self.folder.text():
            self._suggest(self.images.currentText())

    def _allow_start(self) -> None:
        is_asked = not self.meaning.isHidden() and not self.meaning.currentData()
        self.start.setEnabled(bool(self.images.count()) and not self.workspace.busy and not is_asked)

    def _show_axes(self, name: str, answers: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Ask for the meaning of the axes of an image where it is not certain."""
        if name != self.images.currentText():
            return
        self.meaning.clear()
        self.meaning.setVisible(len(answers) > 1)
        if len(answers) > 1:
            self.meaning.addItem(f"What is {_TIMES.join(map(str, shape))}?", "")
            for axes in answers:
                self.meaning.addItem(described_axes(axes, shape), axes)
        self._allow_start()

    def _layer(self) -> Any:
        return self.workspace.images().get(self.images.currentText())

    def _suggest(self, _name: str = "") -> None:
        layer = self._layer()
        self.meaning.setVisible(False)
        if layer is not None:
            self.workspace.ask_axes(layer)
            self.folder.setText(str(suggested_folder(layer.name, str(layer.source.path or ""))))
            self.folder.setCursorPosition(len(self.folder.text()))

    def _choose_folder(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Project folder", self.folder.text(), f"Projects (*{SUFFIX})")
        if path:
            self.folder.setText(path if path.endswith(SUFFIX) else path + SUFFIX)

    def _start(self) -> None:
        layer = self._layer()
        if layer is not None and self.folder.text().strip():
            # a sample says what is to be seen in it
            classes = layer.metadata.get(KEY, {}).get("classes", ())
            axes = "" if self.meaning.isHidden() else str(self.meaning.currentData())
            self.workspace.start(layer, Path(self.folder.text().strip()).expanduser(), classes, axes=axes)

    def _open(self) -> None:
        path = QFileDialog.getExistingDirectory(self, f"Open a project (*{SUFFIX})")
        if path:
            self.workspace.open_project(Path(path))

    def _show_labels(self) -> None:
        if self.session is not None:
            self.session.show_labels()

    # -- classes ------------------------------------------------------------------------------------------------------

    def _choose_class(self, value: int) -> None:
        if self.session is not None:
            self.session.choose_class(value)

    def _add_class(self, name: str) -> None:
        if self.session is not None:
            try:
                from napari_slicelabel.data.classes import make_classes

                self.session.set_classes(make_classes([*self.session.project.classes, name]))
            except SliceLabelError as error:
                self.session.say(str(error), error=True)

    def _remove_class(self, value: int) -> None:
        if self.session is not None:
            self.session.remove_class(value)

    def _ask_removal(self, gone: LabelClass, slices: int) -> None:
        session = self.session
        if session is not None:
            others = [item for item in session.project.classes if item.id != gone.id]
            self.removal = RemovalDialog(gone, others, slices, self)
            self.removal.confirmed.connect(lambda becomes: session.remove_class(gone.id, becomes=becomes))
            self.removal.open()

    def _change_class(self, value: int, **fields: str) -> None:
        if self.session is not None:
            classes = [
                LabelClass(**{**c.model_dump(), **fields}) if c.id == value else c for c in self.session.project.classes
            ]
            self.session.set_classes(classes)


def _described(project: ProjectFacts) -> str:
    sizes = _TIMES.join(f"{size:g}" for size in project.voxel_size)
    shape = _TIMES.join(map(str, project.shape))
    # two lines, so that none breaks between a number and its unit
    return f"<b>{project.volume}</b><br>{shape}, voxels {sizes} {_SIGNS.get(project.unit, project.unit)}"
