"""Dataclasses ↔ JSON, strictly: whatever is not exactly of the declared types is an error that says where."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import sys
import types
import typing
from typing import Any, Literal, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from clip.errors import DataError, choices

__all__ = ["Vector", "from_json", "to_json"]

Vector = NDArray[np.float32]
"""(E,); in JSON the bytes of little-endian numbers, in base 64: exact, and a quarter of the digits."""

_T = TypeVar("_T")


def to_json(value: Any) -> Any:
    """Plain JSON of a dataclass, with all that is inside."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return base64.b64encode(value.astype("<f4").tobytes()).decode("ascii")
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[_T], text: str | bytes) -> _T:
    """The dataclass that ``to_json`` and ``json.dumps`` wrote. Raises DataError with the place of what is wrong."""
    try:
        values = json.loads(text, parse_constant=_no_number, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"is not JSON: {error}") from error
    made: _T = _value(kind, values, "")
    return made


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _value(kind: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):  # only ever: something or None
        return None if value is None else _value(next(a for a in arguments if a is not type(None)), value, place)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _wrong(place, f"one of {', '.join(map(repr, arguments))}", value)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(place, "a list", value)
        return tuple(_value(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is np.ndarray:
        return _vector(value, place)
    if kind is float:
        # An integer beyond all floats compares well enough, and cannot be converted.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise _wrong(place, "a finite number", value)
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(place, {int: "an integer", str: "a string", bool: "true or false"}[kind], value)
    return value


def _object(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    types_of = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    inside = f"{place}." if place else ""
    if unknown := [name for name in value if name not in names]:
        raise DataError(f"{inside}{unknown[0]}: is unknown; known are {choices(unknown[0], names)}")
    if missing := [name for name in names if name not in value]:
        raise DataError(f"{inside}{missing[0]}: is missing; write the file again with this version")
    return kind(**{name: _value(types_of[name], value[name], inside + name) for name in names})


def _vector(value: Any, place: str) -> Vector:
    try:
        vector: Vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    except (binascii.Error, TypeError, ValueError) as error:
        raise _wrong(place, "numbers of 4 bytes in base 64", value) from error
    if not len(vector) or not np.isfinite(vector).all():
        raise _wrong(place, "at least one finite number", value)
    vector.flags.writeable = False
    return vector


def _wrong(place: str, expected: str, value: Any) -> DataError:
    shown = json.dumps(value)
    return DataError(
        f"{place or 'the file'}: is {shown if len(shown) <= 60 else shown[:57] + '…'}; expected: {expected}"
    )
