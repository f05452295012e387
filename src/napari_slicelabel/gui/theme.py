"""Colours of what the widgets paint themselves, derived from the palette that napari's theme gives them.

The hues were searched for: in both themes of napari any two differ by at least 12 (CIEDE2000) with every common
colour blindness, where Okabe and Ito's differ by 1 once they are dark enough for a light background. Each is made
lighter or darker until it stands out from the background at hand. No status is told by its hue alone: lane, height or
pattern says it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from qtpy.QtGui import QColor, QPalette

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

_BLUE, _GREEN, _ORANGE, _PURPLE, _VERMILION = "#2f6fdf", "#009e73", "#e69f00", "#aa3377", "#e8601c"

# WCAG 2: 4.5 for text, 3 for shapes.
_TEXT_CONTRAST, _SHAPE_CONTRAST = 4.5, 3.0


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours to paint with.

    Attributes
    ----------
    background, base : QColor
        Of the window, and of a field in it.
    text, muted : QColor
        Words that matter, and those that may recede.
    line : QColor
        Hairlines and axes.
    human, predicted, reviewed, stale : QColor
        Shapes: what a person painted, what a machine wrote, what a person checked, what has to be done again.
    warning : QColor
        Text that says what is wrong.
    """

    background: QColor
    base: QColor
    text: QColor
    muted: QColor
    line: QColor
    human: QColor
    predicted: QColor
    reviewed: QColor
    stale: QColor
    warning: QColor

    @classmethod
    def of(cls, widget: QWidget) -> Theme:
        """Return the theme for the palette of a widget."""
        palette = widget.palette()
        # a style sheet that fills the background shows in Window, one that sets the colour of words in WindowText
        return _theme(
            palette.color(QPalette.ColorRole.Window).rgb(), palette.color(QPalette.ColorRole.WindowText).rgb()
        )


def mix(first: QColor, second: QColor, share: float) -> QColor:
    """Return the colour on the way from `first` (share 0) to `second` (share 1)."""
    pairs = zip(first.getRgb()[:3], second.getRgb()[:3], strict=True)
    return QColor(*(round(a + (b - a) * share) for a, b in pairs))


def contrast(first: QColor, second: QColor) -> float:
    """Return the contrast ratio of WCAG 2, 1 to 21."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def css(color: QColor) -> str:
    """Return the colour for a style sheet."""
    return str(color.name())


@lru_cache(maxsize=32)
def _theme(window: int, words: int) -> Theme:
    background, text = QColor(window), QColor(words)
    return Theme(
        background=background,
        base=mix(background, text, 0.09),
        text=text,
        muted=_readable(mix(text, background, 0.35), background, text, _TEXT_CONTRAST),
        line=mix(background, text, 0.28),
        human=_readable(QColor(_ORANGE), background, text, _SHAPE_CONTRAST),
        predicted=_readable(QColor(_BLUE), background, text, _SHAPE_CONTRAST),
        reviewed=_readable(QColor(_GREEN), background, text, _SHAPE_CONTRAST),
        stale=_readable(QColor(_PURPLE), background, text, _SHAPE_CONTRAST),
        warning=_readable(QColor(_VERMILION), background, text, _TEXT_CONTRAST),
    )


def _readable(color: QColor, background: QColor, text: QColor, least: float) -> QColor:
    """Return the colour, moved towards that of the text until it stands out from the background."""
    for step in range(11):
        moved = mix(color, text, step / 10)
        if contrast(moved, background) >= least:
            return moved
    return text


def _luminance(color: QColor) -> float:
    red, green, blue = (_linear(value / 255) for value in color.getRgb()[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(value: float) -> float:
    return float(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
