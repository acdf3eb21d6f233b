"""Options that choose among the pictures of an index: by path, date, size, and any column."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from clip.search.store import Condition, Operator

__all__ = ["conditions_of", "filters", "moment", "size", "where"]

Function = TypeVar("Function", bound=Callable[..., Any])

_INTEGERS = range(-(1 << 63), 1 << 63)
"""What a store can compare."""


class Where(NamedTuple):
    """What a ``Condition`` is made of, without importing what that needs."""

    column: str
    operator: Operator
    value: str | int | float | bool
    text: str
    """The value as it was written: text columns are compared with it whatever it looks like."""


def filters(function: Function) -> Function:
    """``--path``, ``--after``, ``--before``, ``--min-size``, ``--max-size`` and ``--where``, for ``conditions_of``."""
    added = [
        click.option(
            "--path", metavar="GLOB", help="Only pictures whose whole path fits: '*/2024/*.jpg' (* also fits /)."
        ),
        click.option(
            "--after", metavar="DATE", callback=_parsed(moment), help="Only files changed at this date or later."
        ),
        click.option("--before", metavar="DATE", callback=_parsed(moment), help="Only files changed before this date."),
        click.option(
            "--min-size", metavar="SIZE", callback=_parsed(size), help="Only files of at least this size: 10KB, 2MB."
        ),
        click.option("--max-size", metavar="SIZE", callback=_parsed(size), help="Only files of at most this size."),
        click.option(
            "--where",
            metavar="CONDITION",
            callback=_parsed(where),
            multiple=True,
            help="Only pictures for which 'COLUMN OP VALUE' holds, such as 'width>=1000' or 'label=cat'. OP is =, !=, "
            "<, <=, >, >= or glob; COLUMN is path, width, height, format, size_bytes, modified_ns, or one of the "
            "metadata. May be given several times.",
        ),
    ]
    for option in reversed(added):
        function = option(function)
    return function


def conditions_of(
    *,
    path: str | None,
    after: int | None,
    before: int | None,
    min_size: int | None,
    max_size: int | None,
    where: Sequence[Where],
) -> Sequence[Condition]:
    """All of them as conditions. Raises ConfigError for one that can never hold."""
    from clip.search.store import COLUMNS, Condition, checked_conditions

    options: list[tuple[str, Operator, str | int | None]] = [
        ("path", "glob", path),
        ("modified_ns", ">=", after),
        ("modified_ns", "<", before),
        ("size_bytes", ">=", min_size),
        ("size_bytes", "<=", max_size),
    ]
    conditions = [Condition(column, operator, value) for column, operator, value in options if value is not None]
    for column, operator, value, text in where:
        is_text = operator == "glob" or COLUMNS.get(column) is str
        conditions.append(Condition(column, operator, text if is_text else value))
    return checked_conditions(conditions)


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """What makes of the text of an option, or of each of several, what the function does; ValueErrors name it."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(each) for each in value)
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, parameter) from error

    return callback


_DATE = re.compile(r"(\d{4})(-\d{2})?(-\d{2})?([T ].+)?")


def moment(text: str) -> int:
    """Nanoseconds since 1970 at the beginning of a year, month, day or time, here unless it names a zone."""
    match = _DATE.fullmatch(text.strip())
    if match is None or (match[4] and not match[3]):
        raise ValueError(f"{text!r} is no date; write 2024, 2024-05, 2024-05-31 or 2024-05-31T18:00")
    try:
        at = datetime.fromisoformat(f"{match[1]}{match[2] or '-01'}{match[3] or '-01'}{match[4] or ''}")
        nanoseconds = round(at.timestamp() * 1e6) * 1000
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r} is no date ({error})") from error
    return max(_INTEGERS[0], min(nanoseconds, _INTEGERS[-1]))  # years before 1678 and after 2261 are ever so far away


_SIZE = re.compile(r"(\d+(?:[.]\d+)?)\s*(?:([kmgt])(i?)b?|b|bytes)?", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes: ``1500``, ``10KB`` (10,000), ``10KiB`` (10,240), ``1.5M``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write 1500, 10KB, 2.5MB or 1GiB")
    power = " kmgt".index(match[2].lower()) if match[2] else 0
    count = float(match[1]) * float((1024 if match[3] else 1000) ** power)
    return min(round(count), _INTEGERS[-1])


_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|==|=|<|>|\sglob\s)\s*(.*?)\s*", re.DOTALL)


def where(text: str) -> Where:
    """``COLUMN OP VALUE``. A value is a number, true, false, or else text; a number in double quotes is text, too."""
    match = _CONDITION.fullmatch(text)
    if match is None or not match[3]:
        raise ValueError(f"{text!r} is no condition; write 'COLUMN OP VALUE' with =, !=, <, <=, >, >= or glob")
    column, operator, written = match[1], match[2].strip().replace("==", "="), match[3]
    value: Any = written
    with contextlib.suppress(ValueError):  # which is text
        value = json.loads(written)
    if isinstance(value, str):
        written = value  # without its quotes
    if isinstance(value, (dict, list)) or value is None:
        value = written
    if isinstance(value, float) and not math.isfinite(value):  # NaN and Infinity are words
        value = written
    if isinstance(value, int) and value not in _INTEGERS:
        raise ValueError(f"{text!r}: {written} has more than 64 bits; write 1e20 for a number as large")
    return Where(column, operator, value, written)  # type: ignore[arg-type]  # the expression has no others
