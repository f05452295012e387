import numpy as np
import pytest

from napari_slicelabel.data.classes import LabelClass, make_classes
from napari_slicelabel.engine.label_values import LabelValues, colour_codes
from napari_slicelabel.errors import InputError

ONE = (LabelClass(id=7, name="cell", color="#ff0000"),)
TWO = make_classes(["a", "b"])


@pytest.mark.parametrize(("classes", "number"), [((), 1), (ONE, 7), (TWO, 1)])
def test_a_mask_is_one_class(classes: tuple[LabelClass, ...], number: int) -> None:
    meaning = LabelValues.of({0, 255}, "l", classes)
    plane, known = meaning.apply(np.array([[0, 255]], np.uint8))
    assert (plane.tolist(), known.all(), meaning.classes) == ([[0, number]], True, {number})


@pytest.mark.parametrize("value", [255, -1])
def test_beside_classes_they_are_unknown(value: int) -> None:
    plane, known = LabelValues.of({0, 1, value}, "l", ()).apply(np.array([[0, 1, value]]))
    assert (plane.tolist(), known.tolist()) == ([[0, 1, 0]], [[True, True, False]])


def test_high_ids_get_free_numbers() -> None:
    meaning = LabelValues.of({0, 3, 500, 70000}, "l", TWO, add=True)
    assert (meaning.numbers, [c.name for c in meaning.added]) == ({500: 4, 70000: 5}, ["label 500", "label 70000"])
    assert meaning.apply(np.array([[3, 500, 70000]], np.uint32))[0].tolist() == [[3, 4, 5]]
    with pytest.raises(InputError, match=r"500, 70000.*--add-classes"):
        LabelValues.of({500, 70000}, "l", TWO)
    with pytest.raises(InputError, match="instances"):
        LabelValues.of(set(range(3000)), "l", ())
    with pytest.raises(InputError, match="instances"):
        LabelValues.of({0, 1, -3}, "l", ())


def test_colours_are_those_of_the_classes() -> None:
    picture = np.array([[255, 0, 0], [0, 0, 0], [0, 255, 0]], np.uint8).T[:, None]
    codes = colour_codes(picture)
    assert LabelValues.of_colours({0, 0xFF0000}, "l", ONE).apply(codes[:, :2])[0].tolist() == [[7, 0]]
    with pytest.raises(InputError, match=r"#00ff00.*#ff0000 cell"):
        LabelValues.of_colours({0, 0xFF0000, 0xFF00}, "l", ONE)
    meaning = LabelValues.of_colours({0, 0xFF0000, 0xFF00}, "l", ONE, add=True)
    assert meaning.apply(codes)[0].tolist() == [[7, 0, 1]]
    assert [c.color for c in meaning.added] == ["#00ff00"]
    with pytest.raises(InputError, match="photograph"):
        LabelValues.of_colours(set(range(400)), "l", ())
    transparent = np.concatenate([picture, np.array([[[0, 255, 255]]], np.uint8)])
    assert colour_codes(transparent)[0, 0] == 0
