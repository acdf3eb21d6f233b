"""A model with known answers: pictures and texts are embedded as their shares of red, green and blue."""

from __future__ import annotations

import dataclasses
import io
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clip.clip import tokenize
from clip.data.records import Sample
from clip.errors import DataError


class Colours(nn.Module):
    context_length = 77
    vocab_size = 49408
    dtype = torch.float32
    config = types.SimpleNamespace(embed_dim=3)

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.eval()
        self._words = {int(tokenize(word)[0, 1]): i for i, word in enumerate(("red", "green", "blue"))}

    def encode_image(self, pixels: Tensor) -> Tensor:
        return 7 * pixels.mean(dim=(2, 3))

    def encode_text(self, ids: Tensor) -> Tensor:
        features = torch.full((len(ids), 3), 1 / 64)  # squares are exact: green and blue are equally far from red
        for row, text in enumerate(ids.tolist()):
            for token in text:
                if token in self._words:
                    features[row, self._words[token]] += 5
        return features


class Plain:
    """Pixels as shares of one."""

    size = 4

    def __call__(self, pixels: np.ndarray | Image.Image) -> Tensor:
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255


@dataclasses.dataclass
class Pictures:
    """A source of records that are at hand; a string among them is the reason why that one cannot be read."""

    records: list[Sample | str]
    class_names: tuple[str, ...] = ()
    name: str = "pictures"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        if isinstance(record, str):
            raise DataError(record)
        return record


def png(red: int, green: int, blue: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


def record(key: str, colour: tuple[int, int, int] | bytes, *captions: str, label: int | None = None) -> Sample:
    """A picture of one colour, or bytes that are none."""
    image = colour if isinstance(colour, bytes) else png(*colour)
    return Sample(key=key, image=image, captions=captions or (key,), label=label)


@pytest.fixture
def colours() -> Colours:
    return Colours()


@pytest.fixture
def plain() -> Plain:
    return Plain()


@pytest.fixture
def pictures() -> Callable[..., Pictures]:
    return Pictures


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return record
