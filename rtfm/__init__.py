"""RTFM answers questions in Discord communities from their earlier messages. Its services communicate through Kafka."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rtfm-events")
except PackageNotFoundError:  # the source tree is used without being installed
    __version__ = "0+unknown"
