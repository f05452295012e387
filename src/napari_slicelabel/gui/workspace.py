"""One for each viewer: the session that goes on in it, whichever widgets are open."""

from __future__ import annotations

import atexit
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject, QTimer, Signal
from qtpy.QtWidgets import QApplication, QMainWindow

from napari_slicelabel.data.project import Project
from napari_slicelabel.engine.plan import RunPlan
from napari_slicelabel.errors import SliceLabelError
from napari_slicelabel.gui import recent
from napari_slicelabel.gui.layers import KEY, is_stack, role
from napari_slicelabel.gui.session import Session, open_session
from napari_slicelabel.gui.starting import (
    ImageFacts,
    OtherImageError,
    add_to_project,
    possible_axes,
    settled,
    start_project,
)
from napari_slicelabel.gui.state import LayerFacts, Snapshot, resolve
from napari_slicelabel.gui.tasks import Tasks
from napari_slicelabel.gui.worker import RunState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qtpy.QtWidgets import QWidget

    from napari_slicelabel.data.classes import LabelClass

_WATCH_MS = 1000

_WORKSPACES: weakref.WeakKeyDictionary[Any, Workspace] = weakref.WeakKeyDictionary()


class Workspace(QObject):
    """What goes on in a viewer. Get it with `Workspace.of`; widgets come and go, it stays.

    Attributes
    ----------
    changed : Signal()
        `snapshot` may be a new one.
    said : Signal(str, bool)
        A message for the user, and whether it is an error.
    session_changed : Signal()
        `session` is another one.
    axes_known : Signal(str, tuple, tuple)
        Name of a layer, what its axes may be, and its shape.
    folder_proposed : Signal(str)
        A free folder, where the chosen one is the project of another image.
    session : Session or None
        The labelling that goes on.
    strip : weakref.ref or None
        The bar under the canvas: one, whichever widgets come and go.
    """

    changed = Signal()
    said = Signal(str, bool)
    session_changed = Signal()
    axes_known = Signal(str, tuple, tuple)
    folder_proposed = Signal(str)

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        # the viewer that a widget gets is a proxy; it must not keep the viewer alive
        self._ref = weakref.ref(getattr(viewer, "__wrapped__", viewer))
        self._wrap = type(viewer) if hasattr(viewer, "__wrapped__") else (lambda inner: inner)
        self.session: Session | None = None
        self.busy = ""
        self.strip: weakref.ref[QWidget] | None = None
        self._tasks = Tasks(self)
        self._tasks.failed.connect(self._failed)
        self._windows: list[weakref.ref[QWidget]] = []
        viewer.layers.events.inserted.connect(self._layers_changed)
        viewer.layers.events.removed.connect(self._layers_changed)
        self._watch = QTimer(self)
        self._watch.setInterval(_WATCH_MS)
        self._watch.timeout.connect(self._check_viewer)
        self._watch.start()
        app = QApplication.instance()
        if app is not None:
            app.aboutToQuit.connect(self.close)
        atexit.register(self.close)

    @classmethod
    def of(cls, viewer: Any) -> Workspace:
        """Return the workspace of a viewer, the same one each time."""
        inner = getattr(viewer, "__wrapped__", viewer)
        if inner not in _WORKSPACES:
            _WORKSPACES[inner] = cls(viewer)
        return _WORKSPACES[inner]

    @property
    def viewer(self) -> Any:
        """The viewer; None once it is closed."""
        inner = self._ref()
        return None if inner is None else self._wrap(inner)

    def watch_window(self, window: QWidget | None) -> None:
        """End everything when this window closes: a dock gets no word of that."""
        # a dock that floats is a window too, but its end means nothing
        while window is not None and not isinstance(window, QMainWindow):
            window = window.parentWidget()
        if window is not None and not any(ref() is window for ref in self._windows):
            self._windows.append(weakref.ref(window))
            window.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Look for the window's end. napari may ask first and stay: hence the look a moment later."""
        if event is not None and event.type() == QEvent.Type.Close:
            QTimer.singleShot(0, self._check_window)
        return False

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """Everything that the widgets show."""
        if self.session is not None:
            return self.session.snapshot
        return resolve(None, LayerFacts(images=tuple(self.images())), RunState(), RunPlan())

    def images(self) -> dict[str, Any]:
        """Return the layers that labelling could begin on, by name."""
        viewer = self.viewer
        if viewer is None:
            return {}
        return {layer.name: layer for layer in viewer.layers if is_stack(layer) and role(layer) in ("", "image")}

    # -- beginning ----------------------------------------------------------------------------------------------------

    def start(self, layer: Any, folder: Path, classes: Sequence[LabelClass | str] = (), *, axes: str = "") -> None:
        """Begin to label an image of the viewer; its project is created if it is not there."""
        try:
            facts = ImageFacts.of(layer, axes)
        except SliceLabelError as error:
            self.said.emit(str(error), True)
            return
        if not self._may_leave():
            return
        reference = weakref.ref(getattr(layer, "__wrapped__", layer))

        def work() -> tuple[Project, str, bool] | OtherImageError:
            whole = settled(facts)
            try:
                return *start_project(whole, folder, classes), whole.is_shown_as_read
            except OtherImageError as error:
                return error

        def done(begun: tuple[Project, str, bool] | OtherImageError) -> None:
            if isinstance(begun, OtherImageError):
                self._failed(str(begun), "")
                self.folder_proposed.emit(str(begun.free))
                return
            project, name, is_shown_as_read = begun
            self._begin(project, name, self._image_for(reference(), is_shown_as_read))
            self._say_copy(project, name)

        self._set_busy("Preparing the project ...")
        self._tasks.start(work, done)

    def _image_for(self, layer: Any, is_shown_as_read: bool) -> Any:
        """Return the layer to paint over; None, and it is hidden, where its axes are in another order than z, y, x."""
        if layer is None or is_shown_as_read:
            return layer
        layer.visible = False
        return None

    def _say_copy(self, project: Project, name: str) -> None:
        source = Path(project.record(name).absolute_source)
        if source.is_relative_to(project.path):
            self.said.emit(f"The image as it is shown is in no file: it was copied to {source}.", False)

    def ask_axes(self, layer: Any) -> None:
        """Find out in the background what the axes of an image may be; `axes_known` tells."""
        try:
            facts = ImageFacts.of(layer)
        except SliceLabelError:
            return
        name, shape = layer.name, tuple(facts.data.shape)
        self._tasks.start(lambda: possible_axes(facts), lambda answers: self.axes_known.emit(name, answers, shape))

    def _may_leave(self) -> bool:
        """Return whether the project may be closed; say why not."""
        session = self.session
        if session is not None and session.worker.state.active:
            self.said.emit("A run goes on in this project. Stop it first (section Propagate).", True)
            return False
        if session is not None and session.store.save_state.error:
            self.said.emit(f"Not all that was painted is saved: {session.store.save_state.error}", True)
            return False
        return True

    def close_project(self) -> None:
        """Save what is painted and take the layers of the project away; the user's own image stays."""
        session = self.session
        if session is None or not self._may_leave():
            return
        image = session.image
        session.put_image_away()
        self.end_session()
        if image is not None and self.viewer is not None and image in self.viewer.layers:
            # an image of nobody again, with which another project may begin
            image.metadata[KEY] = {
                key: value
                for key, value in dict(image.metadata.get(KEY, {})).items()
                if key not in ("project", "volume", "role")
            }
            image.visible = True
        self.changed.emit()

    def open_project(self, path: Path, volume: str = "", layer: Any = None) -> None:
        """Open a project folder and go on with it."""

        def work() -> tuple[Project, str]:
            project = Project.open(path)
            # opened and measured here, not in the window's thread
            name = volume or project.names[0]
            project.volume(name).intensity()
            return project, name

        if not self._may_leave():
            return
        self._set_busy("Opening the project ...")
        self._tasks.start(work, lambda found: self._begin(found[0], found[1], layer))

    def open_volume(self, name: str) -> None:
        """Go on with another volume of the project; the layers of this one are taken away."""
        session = self.session
        if session is None or name == session.volume:
            return
        if session.worker.state.active:
            self.said.emit("A run goes on in this project. Stop it before you change to another volume.", True)
            self.changed.emit()
            return
        path = session.project.path
        session.put_image_away()
        self.end_session()
        self.open_project(path, name, self._image_of(path, name))

    def add_volume(self, layer: Any) -> None:
        """Take another image of the viewer into the project, and go on with it."""
        session = self.session
        if session is None:
            return
        if session.worker.state.active:
            self.said.emit("A run goes on in this project. Stop it before you add a volume.", True)
            return
        try:
            facts = ImageFacts.of(layer)
        except SliceLabelError as error:
            self.said.emit(str(error), True)
            return
        project, reference = session.project, weakref.ref(getattr(layer, "__wrapped__", layer))

        def work() -> tuple[str, bool]:
            whole = settled(facts)
            return add_to_project(project, whole), whole.is_shown_as_read

        def done(added: tuple[str, bool]) -> None:
            self._set_busy("")
            session.put_image_away()
            self.end_session()
            self.open_project(project.path, added[0], self._image_for(reference(), added[1]))

        self._set_busy("Adding the image ...")
        self._tasks.start(work, done)

    def remove_volume(self, name: str) -> None:
        """Take a volume out of the project, and go on with the first of those that stay; nothing is deleted."""
        session = self.session
        if session is None or not self._may_leave():
            return
        project = session.project
        try:
            project.remove_volume(name)
        except SliceLabelError as error:
            self.said.emit(str(error), True)
            return
        if name != session.volume:
            self.changed.emit()
            return
        session.put_image_away()
        self.end_session()
        self.open_project(project.path, project.names[0], self._image_of(project.path, project.names[0]))
        self.said.emit(f"{name} is no longer in the project; its image and what was painted in it are kept.", False)

    def _image_of(self, path: Path, name: str) -> Any:
        """Return the layer that shows a volume; None if there is none."""
        for layer in self.images().values():
            about = dict(layer.metadata.get(KEY, {}))
            if (about.get("project"), about.get("volume")) == (str(path), name):
                return layer
        return None

    def _begin(self, project: Project, volume: str, image: Any) -> None:
        self._set_busy("")
        if self.viewer is None:
            return
        if self.session is not None and (self.session.project.path, self.session.volume) == (project.path, volume):
            return
        if self._is_elsewhere(project):
            self.said.emit(f"{project.path.name} is open in another window; go on there, or close it there first", True)
            return
        self.end_session()
        if image is not None and image not in self.viewer.layers:
            # removed while the project was prepared
            image = None
        try:
            self.session = open_session(lambda: self.viewer, project, volume, image)
        except SliceLabelError as error:
            self.said.emit(str(error), True)
            return
        self.session.changed.connect(self.changed)
        self.session.said.connect(self.said)
        recent.remember(project.path)
        for note in project.volume(volume).notes:
            self.said.emit(note, False)
        self.session_changed.emit()
        self.changed.emit()

    def _is_elsewhere(self, project: Project) -> bool:
        """Return whether another viewer labels in this project: each would undo what the other one saves."""
        others = [space.session for space in _WORKSPACES.values() if space is not self]
        return any(other is not None and other.project.path == project.path for other in others)

    def _set_busy(self, text: str) -> None:
        self.busy = text
        self.changed.emit()

    def _failed(self, line: str, whole: str) -> None:
        self._set_busy("")
        self.said.emit(line, True)

    def _layers_changed(self, event: Any) -> None:
        self.changed.emit()
        if event.type == "inserted" and self.session is None and not self.busy:
            about = dict(event.value.metadata.get(KEY, {}))
            if about.get("role") == "image" and about.get("project"):
                self.open_project(Path(about["project"]), about.get("volume", ""), event.value)

    def adopt(self) -> None:
        """Go on with the project that a reader or a sample has put into the viewer."""
        for layer in self.images().values():
            about = dict(layer.metadata.get(KEY, {}))
            if self.session is None and not self.busy and about.get("project"):
                self.open_project(Path(about["project"]), about.get("volume", ""), layer)

    # -- the end ------------------------------------------------------------------------------------------------------

    def end_session(self, *, keep_layers: bool = False) -> None:
        """Stop the run, save what is painted, and remove our layers; the image stays."""
        session, self.session = self.session, None
        if session is not None:
            session.close()
            if not keep_layers:
                session.remove_layers()
            self.session_changed.emit()

    def close(self) -> None:
        """End everything."""
        atexit.unregister(self.close)
        self._watch.stop()
        # the layers go with their window
        self.end_session(keep_layers=True)
        self._tasks.close()

    def _check_viewer(self) -> None:
        if self._ref() is None:
            self.close()

    def _check_window(self) -> None:
        for ref in self._windows:
            window = ref()
            if window is None or not window.isVisible():
                self.close()
                return
