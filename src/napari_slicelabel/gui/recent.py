"""The projects that were open last, in a file beside napari's settings."""

from __future__ import annotations

import json
from pathlib import Path

from napari.settings import get_settings

_MOST = 8


def recent_projects() -> list[Path]:
    """Return the projects that were open last and are still there, the latest first."""
    return [path for path in _listed() if (path / "project.json").is_file()]


def remember(path: Path) -> None:
    """Put a project first in the list; where the settings cannot be written there is none."""
    file = _file()
    if file is None:
        return
    paths = [path, *(other for other in _listed() if other != path)][:_MOST]
    try:
        file.write_text(json.dumps([str(one) for one in paths], indent=1), encoding="utf-8")
    except OSError:
        return


def _listed() -> list[Path]:
    file = _file()
    try:
        listed = json.loads(file.read_text(encoding="utf-8")) if file is not None else []
    except (OSError, ValueError):
        return []
    return [Path(one) for one in listed if isinstance(one, str)] if isinstance(listed, list) else []


def _file() -> Path | None:
    """Return the file of the list; None where napari keeps no settings."""
    settings = get_settings().config_path
    return Path(settings).with_name("napari-slicelabel-recent.json") if settings else None
