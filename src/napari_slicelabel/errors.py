"""The errors of the package.

Each is also the builtin error that a caller would expect, so ``except ValueError`` works for whoever does not
know this module. A message is one line: what was given, what was expected, what to do.
"""


class SliceLabelError(Exception):
    """Base of every error that the package raises on purpose: shown as text, without a traceback."""


class InputError(SliceLabelError, ValueError):
    """What the user gave (a file, a value, an argument) is not what is needed."""


class MissingFileError(SliceLabelError, FileNotFoundError):
    """A file or folder is not there, or cannot be read."""


class StorageError(SliceLabelError, OSError):
    """The storage failed: disk full, read-only folder, corrupt chunk."""


class BusyError(SliceLabelError, RuntimeError):
    """Another run already goes in this project, or another program writes to it and does not end."""


class DeviceError(SliceLabelError, RuntimeError):
    """The device that was asked for is not there, or its memory is full."""
