"""What a student learns beside its pairs: where another model puts the same pictures and texts (Yang et al. 2024,
"CLIP-KD", section 3: feature distillation)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.data.loading import Batch
from clip.errors import ConfigError
from clip.features import normalized
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.simple_tokenizer import token_ids

__all__ = ["FileTeacher", "ModelTeacher", "Targets", "Teacher"]

Targets = tuple[Tensor | None, Tensor | None]
"""What image and text embeddings should be, each (B, E) at unit norm, or None."""

Teacher = Callable[[Batch], Targets]
"""A batch → what its embeddings should be."""


class ModelTeacher:
    """Another model, which sees what the student sees: the same augmented pictures at its own size and statistics, and
    the same captions, cut to its own context.

    micro_batch_size: pairs that go through it at once; by default the whole batch.
    """

    def __init__(
        self,
        model: CLIP,
        preprocess: Preprocess,
        *,
        student: CLIP,
        student_preprocess: Preprocess,
        micro_batch_size: int | None = None,
    ) -> None:
        _check_width("the teacher", model.config.embed_dim, student)
        self._model = model.eval()
        self._size = preprocess.size
        self._micro_batch_size = micro_batch_size
        device = model.logit_scale.device

        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, device=device).view(3, 1, 1)

        # (x · own std + own mean - its mean) / its std, as one factor and one offset
        self._factor = column(student_preprocess.std) / column(preprocess.std)
        self._offset = (column(student_preprocess.mean) - column(preprocess.mean)) / column(preprocess.std)

    def __call__(self, batch: Batch) -> Targets:
        model = self._model
        rows = len(batch.keys)
        if not rows:
            empty = torch.zeros(0, model.config.embed_dim, device=model.logit_scale.device)
            return empty, empty
        ids = torch.from_numpy(token_ids(batch.captions, model.context_length, truncate=True, special_words=False))
        size = self._micro_batch_size or rows
        parts = [
            self._encode(batch.images[start : start + size], ids[start : start + size])
            for start in range(0, rows, size)
        ]
        images, texts = (torch.cat(side) for side in zip(*parts, strict=True))
        return images, texts

    def _encode(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        model = self._model
        device = model.logit_scale.device
        images = images.to(device)
        if images.shape[-1] != self._size:
            images = F.interpolate(images, (self._size, self._size), mode="bicubic", antialias=True)
        with torch.no_grad():
            image_features = model.encode_image(images * self._factor + self._offset)
            text_features = model.encode_text(texts.to(device))
        return normalized(image_features), normalized(text_features)


class FileTeacher:
    """Embeddings in .npy files, row i of which belongs to record i of the source."""

    def __init__(
        self,
        *,
        images: str | os.PathLike[str] | None,
        texts: str | os.PathLike[str] | None,
        records: int,
        student: CLIP,
    ) -> None:
        self._images = None if images is None else _rows(images, records, student)
        self._texts = None if texts is None else _rows(texts, records, student)

    def __call__(self, batch: Batch) -> Targets:
        images, texts = (_taken(rows, batch.rows) for rows in (self._images, self._texts))
        return images, texts


def _taken(rows: Any, which: Tensor) -> Tensor | None:
    if rows is None:
        return None
    return normalized(torch.from_numpy(np.array(rows[which.numpy()], dtype=np.float32)))


def _rows(path: str | os.PathLike[str], records: int, student: CLIP) -> Any:
    try:
        rows = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a .npy file of embeddings ({error}); clip encode writes one") from error
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ConfigError(f"{path} holds {rows.dtype} of shape {rows.shape}; rows of floats are expected")
    if len(rows) != records:
        raise ConfigError(f"{path} has {len(rows)} rows and the data {records} records; row i must belong to record i")
    _check_width(str(path), rows.shape[1], student)
    return rows


def _check_width(name: str, width: int, student: CLIP) -> None:
    if width != student.config.embed_dim:
        raise ConfigError(
            f"{name} has embeddings of {width} numbers, the student of {student.config.embed_dim}; embeddings are "
            "compared directly, so take a teacher or an architecture with the same embed_dim"
        )
