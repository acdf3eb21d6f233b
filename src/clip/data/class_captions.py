"""Classes → captions: templates with the name of the class, and the small text files that both are kept in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clip.errors import ConfigError, DataError

__all__ = ["DEFAULT_TEMPLATES", "captions_of_class", "checked_templates", "read_lines"]

DEFAULT_TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
"""Used where none are given."""

_MAX_BYTES = 1 << 20


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates; ``{c}``, as CLIP_benchmark writes, becomes ``{}``. Raises ConfigError for one without either."""
    if isinstance(templates, str) or not templates:
        raise ConfigError(f"templates is {templates!r}; give a list of at least one string with {{}}")
    templates = tuple(template.replace("{c}", "{}") for template in templates)
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"template {template!r} has no {{}}; write {{}} where the class name goes")
        if "a(n) {}" in template:
            raise ConfigError(f"template {template!r} leaves the article open; write it with one that fits the classes")
    return templates


def captions_of_class(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    return tuple(template.replace("{}", name) for template in templates)


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a small UTF-8 file that are not blank, stripped. Raises DataError if there are none."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the name, or write it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return lines_of(data, str(path))


def lines_of(data: bytes, name: str) -> tuple[str, ...]:
    """The same, of bytes at hand."""
    if len(data) > _MAX_BYTES:
        raise DataError(f"{name}: has more than {_MAX_BYTES} bytes; a small text is expected")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise DataError(f"{name}: is empty; write at least one line")
    return lines
