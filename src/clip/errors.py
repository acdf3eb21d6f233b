"""Every exception of the package.

ClipError
├─ ModelNotFoundError        also RuntimeError: what OpenAI's ``load`` raises
├─ CheckpointError           also RuntimeError: what torch and OpenAI raise
│  ├─ ChecksumError          expected and found
│  ├─ StateDictError         lists missing, unexpected and mis-shaped keys
│  └─ ConversionError        what the target format cannot hold, by name
├─ DownloadError             also RuntimeError: address, reason, remedy
├─ TextTooLongError          also RuntimeError: what OpenAI's ``tokenize`` raises
├─ ImageError                also ValueError: unreadable, or larger than the limit
├─ ShapeError, ConfigError   also ValueError
├─ DataError                 with file and record
│  └─ IndexNotFoundError     no index has this address
└─ MissingDependencyError    also ImportError; says which extra to install

Each also inherits the builtin that OpenAI's API raises at that point, so existing ``except`` clauses keep working.
A message has the value, the limit and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ChecksumError",
    "ClipError",
    "ConfigError",
    "ConversionError",
    "DataError",
    "DownloadError",
    "ImageError",
    "IndexNotFoundError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "ShapeError",
    "StateDictError",
    "TextTooLongError",
    "choices",
]


class ClipError(Exception):
    """Base of all errors that this package raises on purpose."""


class ModelNotFoundError(ClipError, RuntimeError):
    """A model name that is neither known nor a path."""


class CheckpointError(ClipError, RuntimeError):
    """A checkpoint that cannot be read, understood or written."""


class ChecksumError(CheckpointError):
    """A file whose SHA-256 is not the expected one."""


class StateDictError(CheckpointError):
    """A state dict whose keys or shapes are not those of the model."""


class ConversionError(CheckpointError):
    """A model that the target format cannot hold."""


class DownloadError(ClipError, RuntimeError):
    """A file that could not be fetched."""


class TextTooLongError(ClipError, RuntimeError):
    """A text with more tokens than the context length."""


class ImageError(ClipError, ValueError):
    """An image that cannot be decoded, or is larger than the limit."""


class ShapeError(ClipError, ValueError):
    """A tensor of the wrong shape."""


class ConfigError(ClipError, ValueError):
    """A configuration value out of its range, or two that contradict each other."""


class DataError(ClipError):
    """A bad record in a file of data."""


class IndexNotFoundError(DataError):
    """There is no index at an address; another reason than one that cannot be read."""


class MissingDependencyError(ClipError, ImportError):
    """An optional library that is not installed."""


def choices(value: str, known: Iterable[str]) -> str:
    """The known names as a list for a message, the closest to ``value`` first."""
    import difflib  # for whoever has made a mistake; nobody else waits for it

    names = list(known)
    close = difflib.get_close_matches(value, names, n=3, cutoff=0.5)
    return ", ".join([*close, *(name for name in names if name not in close)])
