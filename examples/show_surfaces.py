"""Draw label files as surfaces beside one another: what was painted, what a run made of it, the truth.

    python examples/show_surfaces.py LABELS... --out PICTURE.png [--titles TITLE...] [--classes 2] [--angles 0 20 60]

LABELS are files as `slicelabel export` writes them, of the same volume; of large ones every n-th voxel is read, some
200 a side. Needs napari and a screen, or ``xvfb-run -a -s "-screen 0 1600x1000x24" python ...``.
"""

import argparse
from pathlib import Path

import napari
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from qtpy.QtWidgets import QApplication
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from napari_slicelabel.data.boxes import SliceRef
from napari_slicelabel.data.formats import open_volume
from napari_slicelabel.data.volume import Volume

MOST_VOXELS = 200
SIZE_PX = 560
ZOOM = 0.72
TITLE_PX = 40
COLORS = ("#e6a23c", "#5aa9e6", "#7bc47f", "#d96c75", "#b39ddb", "#c9b458", "#4db6ac", "#f48fb1")


def main() -> None:
    """Read the files and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--titles", nargs="+", default=[])
    parser.add_argument("--angles", nargs=3, type=float, default=(0, 20, 60), help="of the camera, in degrees")
    parser.add_argument("--classes", nargs="+", type=int, default=[], help="label values; all by default")
    arguments = parser.parse_args()
    titles = [*arguments.titles, *(path.name for path in arguments.labels[len(arguments.titles) :])]
    pictures = [picture(open_volume(path), arguments.angles, arguments.classes) for path in arguments.labels]
    whole = Image.new("RGB", (SIZE_PX * len(pictures), SIZE_PX + TITLE_PX), "white")
    write, font = ImageDraw.Draw(whole), ImageFont.load_default(22)
    for number, (shown, title) in enumerate(zip(pictures, titles, strict=True)):
        whole.paste(Image.fromarray(shown), (number * SIZE_PX, TITLE_PX))
        write.text(((number + 0.5) * SIZE_PX, TITLE_PX / 2), title, "black", font, anchor="mm")
    whole.save(arguments.out)
    print(f"{arguments.out}: {len(pictures)} pictures")


def picture(volume: Volume, angles: tuple[float, ...], classes: list[int]) -> np.ndarray:
    """Return a picture (SIZE_PX, SIZE_PX, 3) of the surfaces of some classes, or of all."""
    labels, spacing = thinned(volume)
    viewer = napari.Viewer(ndisplay=3, show=True)
    try:
        viewer.window.resize(SIZE_PX + 400, SIZE_PX + 300)
        viewer.theme = "light"
        for value in classes or [int(value) for value in np.unique(labels[labels > 0])]:
            surface = faces_of(labels == value)
            if surface is not None:
                colors = ["black", COLORS[value % len(COLORS)]]
                viewer.add_surface(
                    surface,
                    scale=spacing,
                    shading="smooth",
                    colormap=napari.utils.Colormap(colors),
                    contrast_limits=(0, 1),
                )
        if not viewer.layers:
            return np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
        viewer.reset_view()
        camera = viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera  # its place before napari 0.9
        camera.angles = tuple(angles)
        camera.zoom *= ZOOM
        QApplication.processEvents()
        return np.asarray(viewer.screenshot(size=(SIZE_PX, SIZE_PX), canvas_only=True, flash=False))[..., :3]
    finally:
        viewer.close()


def thinned(volume: Volume) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return every n-th voxel of a volume, read slice by slice, and how far apart they are."""
    step = max(1, -(-max(volume.shape[-3:]) // MOST_VOXELS))
    planes = [volume.read_slice(SliceRef("z", index)) for index in range(0, volume.depth("z"), step)]
    labels = np.stack([plane.reshape(plane.shape[-2:])[::step, ::step] for plane in planes])
    return labels, tuple(size * step for size in volume.voxel_size)


def faces_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return vertices, faces and values of a slightly smoothed surface, closed where the volume ends."""
    soft = gaussian_filter(np.pad(mask, 2).astype(np.float32), 0.8)
    if not soft.any():
        return None
    # single slices stay below a half
    vertices, faces, _, _ = marching_cubes(soft, min(0.5, float(soft.max()) / 2))
    return vertices - 2, faces, np.ones(len(vertices), np.float32)


if __name__ == "__main__":
    main()
