"""Every store is put through the same cases."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_cases import CASES, E, Index

from clip.search.store import Store, open_store

STORES = ["folder", "milvus"]
_numbers = itertools.count()


@pytest.fixture(params=STORES)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    if request.param == "milvus":
        address = f"{request.getfixturevalue('milvus_server')}/conformance{next(_numbers)}"
    else:
        address = str(tmp_path / "an index")
    with contextlib.ExitStack() as stack:

        def opened(embed_dim: int | None = E) -> Store:
            return stack.enter_context(open_store(address, embed_dim=embed_dim))

        yield opened


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_store(case: Callable[[Index], None], index: Index) -> None:
    case(index)
