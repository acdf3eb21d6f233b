"""Many strings in little memory.

A list of ten million captions costs Python a gigabyte of objects, which the garbage collector walks and which worker
processes copy as soon as they count a reference. Here they are one block of bytes and one array.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Strings"]


class Strings(Sequence[str]):
    """Strings that are kept as UTF-8 in one block; reads like a list, cannot be changed.

    What is not valid Unicode (names of files on Linux need not be) comes back as it went in.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        block, ends = bytearray(), array("q", [0])
        for string in strings:
            block += string.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self._block = bytes(block)
        self._ends: NDArray[np.int64] = np.frombuffer(ends, dtype=np.int64).copy()

    @classmethod
    def of_arrays(cls, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> Strings:
        """What ``arrays`` gave. Raises ValueError if the two do not belong together."""
        is_sound = block.dtype == np.uint8 and ends.dtype == np.int64 and block.ndim == ends.ndim == 1 and len(ends) > 0
        if not is_sound or ends[0] != 0 or ends[-1] != len(block) or (np.diff(ends) < 0).any():
            raise ValueError("the bounds of the strings do not fit their bytes")
        strings = cls()
        strings._block, strings._ends = block.tobytes(), ends
        return strings

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The bytes of all strings, and 0 with the end of each: for a file."""
        return np.frombuffer(self._block, dtype=np.uint8), self._ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} strings")
        index %= len(self)
        return self._block[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")
