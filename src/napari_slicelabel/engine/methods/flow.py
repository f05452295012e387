"""Correspondence flow (S4) as a method; what it does is in `engine.flow`, since other methods interpolate by it."""

from napari_slicelabel.engine.flow import NAME, propagate, work
from napari_slicelabel.engine.flow_config import FlowConfig

__all__ = ["NAME", "FlowConfig", "propagate", "work"]
