"""Asking where the labels of a run are to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QFileDialog

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

    from napari_slicelabel.gui.session import Session

_ENDINGS = "OME-Zarr (*.ome.zarr);;TIFF (*.tif);;NIfTI (*.nii.gz);;HDF5 (*.h5);;nnU-Net folder (*)"


def ask_for_file(parent: QWidget, session: Session, run_id: str = "") -> None:
    """Ask for a file beside the project and write the labels of a run to it; see `Session.export_labels` for which."""
    suggestion = session.project.path.parent / f"{session.volume}_labels.ome.zarr"
    path, _ = QFileDialog.getSaveFileName(parent, "Export labels", str(suggestion), _ENDINGS)
    if path:
        # the dialog has asked about a file that is there
        session.export_labels(path, overwrite=True, run_id=run_id)
