"""RTFM answers questions in Discord communities from their earlier messages, over an event platform."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rtfm-events")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
