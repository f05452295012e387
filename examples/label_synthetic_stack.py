"""Label a synthetic electron-microscopy stack from three painted slices, and score the result.

    python examples/label_synthetic_stack.py [FOLDER]

Everything is written to FOLDER (by default a temporary one, removed at the end).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import napari_slicelabel as nsl
from napari_slicelabel.data.samples import synthetic_em
from napari_slicelabel.engine.events import Finished, SliceDone


def main(folder: Path) -> None:
    # A stack as it comes from a microscope, and what an expert would paint.
    sample = synthetic_em((24, 96, 96), seed=1)
    np.save(folder / "stack.npy", sample.image)

    project = nsl.Project.create(
        folder / "stack.slicelabel",
        [folder / "stack.npy"],
        voxel_size=sample.voxel_size,
        unit=sample.unit,
        classes=sample.classes,
    )

    # Paint three slices. A complete slice says: what is unpainted here is background.
    annotation = project.annotation("stack")
    for index in (4, 12, 20):
        annotation.write_slice(nsl.SliceRef("z", index), sample.labels[index], complete=True)

    # A run is a generator of events. Closing it cancels; what was accepted stays on disk.
    for event in nsl.run(project, nsl.build_config("interpolate", {"seed": 0})):
        if isinstance(event, SliceDone):
            print(f"slice {event.index:2d}: expected Dice {event.confidence:.2f} ({event.provenance})")
        elif isinstance(event, Finished):
            print(f"{event.outcome} in {event.seconds:.1f} s")

    run_id = project.run_ids()[-1]
    truth = nsl.Volume.from_array(sample.labels, name="truth", voxel_size=sample.voxel_size, unit=sample.unit)
    scores = nsl.evaluate(project, truth=truth)
    print("mean Dice over the slices that were not painted:", scores["mean_dice"])

    nsl.export(project, run_id, folder / "labels.ome.zarr")
    print("written:", folder / "labels.ome.zarr")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
