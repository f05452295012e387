"""The settings that napari keeps for us, in its preferences (0.9 on); the defaults elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PLUGIN = "napari-slicelabel"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user may set once for all projects; see ``configurations`` in napari.yaml.

    Attributes
    ----------
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    memory_mb : int
        For painted planes that are kept in memory.
    autosave_s : float
        How long after a stroke it is saved.
    refresh_ms : int
        How often the window looks at a run.
    """

    device: str = "auto"
    memory_mb: int = 512
    autosave_s: float = 0.3
    refresh_ms: int = 100


def settings() -> Settings:
    """Return the settings as they are now."""
    try:
        from napari.settings import get_plugin_settings
    except ImportError:
        # napari 0.8
        return Settings()
    try:
        kept = get_plugin_settings(PLUGIN).labelling
    except (KeyError, AttributeError):
        # not installed as a plugin: a test, or a checkout on the path
        return Settings()
    return Settings(
        device=str(_value(kept, "device", "auto")),
        memory_mb=max(64, int(_value(kept, "memory_mb", 512))),
        autosave_s=min(0.7, max(0.05, float(_value(kept, "autosave_s", 0.3)))),
        refresh_ms=max(50, int(_value(kept, "refresh_ms", 100))),
    )


def _value(kept: Any, name: str, default: object) -> Any:
    return getattr(kept, name, default)
