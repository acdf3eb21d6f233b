"""A model of a moment, and pairs that lie in memory."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clip.data.records import Sample
from clip.errors import DataError
from clip.model import CLIP, CLIPConfig
from clip.preprocess import Preprocess
from clip.training.config import TrainConfig
from clip.training.loop import TrainResult, train

MODEL = CLIPConfig(
    embed_dim=16,
    image_resolution=16,
    vision_layers=1,
    vision_width=16,
    vision_patch_size=8,
    transformer_width=16,
    transformer_layers=1,
    context_length=16,
)
PREPROCESS = Preprocess(size=16)


@dataclasses.dataclass
class Colours:
    """Pictures of one colour each, with captions that tell them apart; those of ``broken`` cannot be read."""

    count: int = 12
    broken: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    name: str = "colours"
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"colours:{index}: broken on purpose")
        colour = np.random.default_rng(index).integers(0, 256, 3, dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(np.broadcast_to(colour, (18, 18, 3)).copy()).save(file, "PNG")
        caption = self.captions[index] if self.captions else f"number {index}"
        return Sample(key=f"colours:{index}", image=file.getvalue(), captions=(caption,))


def new_model(**changes: Any) -> CLIP:
    """The same weights each time."""
    torch.manual_seed(0)
    return CLIP.from_config(dataclasses.replace(MODEL, **changes))


class Trainer:
    """Calls ``train`` with what most tests have in common; each call begins with a new model, as a process would."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.model = new_model()

    def __call__(self, *, model: CLIP | None = None, source: Any = None, **options: Any) -> TrainResult:
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        recipe = {name: options.pop(name) for name in list(options) if name in names}
        defaults: dict[str, Any] = {"batch_size": 6, "workers": 0, "log_every": 1, "learning_rate": 0.01}
        if "epochs" not in recipe:
            defaults["steps"] = 4
        self.model = new_model() if model is None else model
        return train(
            self.model,
            TrainConfig(**{**defaults, **recipe}),
            Colours() if source is None else source,
            output=options.pop("output", self.run),
            preprocess=options.pop("preprocess", PREPROCESS),
            transform=options.pop("transform", PREPROCESS),
            **options,
        )
