"""What an export changed, measured against the exact model on real pictures: the certificate in ``clip.json``."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip import samples
from clip.errors import ClipError
from clip.fidelity import Embeddings, Fidelity, compare
from clip.images import ImageSource, read_pixels
from clip.inference.exported import ExportedCLIP
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.simple_tokenizer import token_ids

if TYPE_CHECKING:
    from clip.config import CLIPConfig

__all__ = ["Certificate", "Inputs", "Latency", "certify", "inputs_for"]

TOLERANCE = 1e-4
"""Of the features of an fp32 export, relative to the largest: sixty times what reordered sums changed in ViT-B/32, and
less than GELU by tanh does (1.3e-4), the smallest fault that a converter makes."""

_MOST_PICTURES = 256
"""More would not move the least cosine enough to be worth the wait."""
_BATCHES = (1, 8)
_ENOUGH_SECONDS, _FEWEST_ROUNDS, _MOST_ROUNDS = 5.0, 3, 15
_BATCH = 8

_Encode = Callable[[Any], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long one call of a tower takes, the two forms by turns: medians in milliseconds."""

    tower: str
    """"image" or "text"."""
    batch_size: int
    reference_ms: float
    exported_ms: float

    @property
    def speed_up(self) -> float:
        """How many times as fast the export is."""
        return self.reference_ms / self.exported_ms


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """An export beside the exact model in fp32 by torch, as ``clip.load`` gives it on a CPU."""

    pictures: str
    """What was encoded, in words."""
    fidelity: Fidelity
    """On all pictures and all texts: captions, prompts and bare labels."""
    same_labels: int
    """Pictures whose best prompt ("a photo of a cat") is the same by both forms."""
    captions: int
    same_finds: int
    """Captions whose best picture is the same by both forms."""
    image_difference: float
    """Largest absolute difference of any number in any picture's features, as the tower gives them."""
    text_difference: float
    """The same of texts."""
    relative_difference: float
    """The larger of the two, each as a share of the largest number in the features."""
    reference_bytes: int
    """Of the checkpoint, as it lies on disk."""
    exported_bytes: int
    """Of the graphs with their weights."""
    latencies: tuple[Latency, ...]
    threads: int
    """That torch used; the other engine chooses by itself."""
    engine: str
    """With its version."""
    reference: str
    """torch, with its version."""
    date: str

    def to_dict(self) -> dict[str, Any]:
        """As ``clip.json`` and ``--json`` hold it."""
        latencies = [{**dataclasses.asdict(latency), "speed_up": latency.speed_up} for latency in self.latencies]
        return {**dataclasses.asdict(self), "fidelity": self.fidelity.to_dict(), "latencies": latencies}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What a model is calibrated and compared with."""

    pictures: str
    """What they are, in words."""
    images: NDArray[np.float32]
    """(N, 3, S, S), preprocessed."""
    text: NDArray[np.int32]
    """(3 M, T) token ids, padded with 0: M captions, M prompts, M labels."""


def inputs_for(config: CLIPConfig, preprocess: Preprocess, pictures: Sequence[ImageSource] | None = None) -> Inputs:
    """The package's samples, or the pictures given, and as texts the samples' captions, prompts and labels.

    pictures: of more than 256, that many are taken at equal distances. Raises ImageError for what is none.
    """
    known = samples.pictures()
    if pictures is None:
        sources: Sequence[ImageSource] = [sample.image for sample in known]
        words = f"the {len(sources)} samples of the package"
    else:
        chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), _MOST_PICTURES)).round().astype(int)
        sources = [pictures[i] for i in chosen]
        words = (
            f"{len(sources)} pictures of {len(pictures)}"
            if len(sources) < len(pictures)
            else f"{len(sources)} pictures"
        )
    if not sources:
        raise ClipError("there are no pictures to calibrate and compare with; name a folder that has some")
    images = np.stack([preprocess.to_numpy(read_pixels(source, shorter_side=preprocess.size)) for source in sources])
    # Long texts and short ones, for an int8 model knows the ranges of what it has seen.
    texts = [sample.caption for sample in known]
    texts += [f"a photo of a {sample.label}" for sample in known] + [sample.label for sample in known]
    text = token_ids(texts, config.context_length, truncate=True, special_words=False)
    if text.max() >= config.vocab_size:  # another tokenizer's model: any ids will do that end where its texts end
        text = _without_words(text, config.vocab_size)
    return Inputs(pictures=words, images=images, text=text)


def _without_words(text: NDArray[np.int32], vocab_size: int) -> NDArray[np.int32]:
    """The same lengths in ids that a smaller vocabulary has, its largest being the end."""
    ends = text.argmax(axis=1)
    text = text % max(1, vocab_size - 1)
    text[np.arange(len(text)), ends] = vocab_size - 1
    return text


def certify(
    model: CLIP,
    exported: ExportedCLIP,
    inputs: Inputs,
    *,
    reference_bytes: int,
    exported_bytes: int,
) -> Certificate:
    """Encodes the inputs by both forms, compares the features and the answers, and times both by turns."""

    def by_torch(encode: Callable[[torch.Tensor], torch.Tensor], rows: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features: NDArray[np.float32] = encode(torch.from_numpy(rows)).numpy()
        return features

    towers: dict[str, tuple[_Encode, _Encode, NDArray[Any]]] = {
        "image": (lambda rows: by_torch(model.encode_image, rows), exported.encode_image, inputs.images),
        "text": (lambda rows: by_torch(model.encode_text, rows), exported.encode_text, inputs.text),
    }
    features: dict[str, list[NDArray[np.float32]]] = {}
    latencies = []
    for tower, (reference, other, rows) in towers.items():
        features[tower] = [_in_batches(reference, rows), _in_batches(other, rows)]
        latencies += [_latency(tower, reference, other, rows, batch_size) for batch_size in _BATCHES]
    (images, other_images), (texts, other_texts) = features["image"], features["text"]
    differences = [float(np.abs(one - other).max()) for one, other in features.values()]
    shares = [d / float(np.abs(one).max()) for d, (one, _) in zip(differences, features.values(), strict=True)]

    def fidelity(rows: slice) -> Fidelity:
        return compare(Embeddings(images, texts[rows]), Embeddings(other_images, other_texts[rows]))

    third = len(texts) // 3
    by_caption, by_prompt = fidelity(slice(third)), fidelity(slice(third, 2 * third))
    return Certificate(
        pictures=inputs.pictures,
        fidelity=fidelity(slice(None)),
        same_labels=len(images) - by_prompt.changed_answers,
        captions=third,
        same_finds=third - by_caption.changed_finds,
        image_difference=differences[0],
        text_difference=differences[1],
        relative_difference=max(shares),
        reference_bytes=reference_bytes,
        exported_bytes=exported_bytes,
        latencies=tuple(latencies),
        threads=torch.get_num_threads(),
        engine=f"{exported.engine} {importlib.metadata.version(exported.engine)}",
        reference=f"torch {torch.__version__}",
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )


def _in_batches(encode: _Encode, rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.concatenate([encode(rows[first : first + _BATCH]) for first in range(0, len(rows), _BATCH)])


def _latency(tower: str, reference: _Encode, other: _Encode, rows: NDArray[Any], batch_size: int) -> Latency:
    batch = np.resize(rows, (batch_size, *rows.shape[1:]))
    seconds: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for done in range(_MOST_ROUNDS + 1):
        for encode, times in zip((reference, other), seconds, strict=True):
            start = time.perf_counter()
            encode(batch)
            times.append(time.perf_counter() - start)
        if done >= _FEWEST_ROUNDS and time.perf_counter() - began > _ENOUGH_SECONDS:
            break
    first, second = (1000 * statistics.median(times[1:]) for times in seconds)  # the first call makes things ready
    return Latency(tower=tower, batch_size=batch_size, reference_ms=first, exported_ms=second)
