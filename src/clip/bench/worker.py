"""The process of one configuration: loads its model, and does what each line of stdin asks, until stdin ends.

A process of its own gives each configuration a memory of its own, and an exported model one without torch. Requests and
answers are lines of JSON; an error is answered, too. ``measure`` is at the other end.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from clip.bench.machine import peak_memory, use_processors
from clip.errors import ClipError

if TYPE_CHECKING:
    from clip.inference.loading import Model
    from clip.preprocess import Preprocess

__all__ = ["main", "text_lengths"]

SHORTEST, LONGEST = 7, 21
"""Tokens of a caption, with its start and end."""


def main() -> None:
    """Serves the other end of stdin and stdout."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("task"))(**request)
        except ClipError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def text_lengths(count: int, context_length: int) -> list[int]:
    """Tokens of so many captions: evenly from 7 to 21, in no order."""
    lengths = np.random.default_rng(0).integers(SHORTEST, LONGEST + 1, count)
    return [min(int(length), context_length) for length in lengths]


class _Worker:
    """Each method is a task; what it returns is the answer."""

    model: Model
    preprocess: Preprocess

    def limit(self, threads: int) -> None:
        use_processors(threads)

    def ceilings(self, precisions: list[str], seconds: float) -> dict[str, Any]:
        import torch

        from clip.bench.ceiling import matmul_ceiling

        rates = {precision: matmul_ceiling(precision, seconds=seconds) for precision in precisions}
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "ceilings": rates}

    def write_random(self, architecture: str, path: str) -> None:
        import clip
        from clip.bench.random_weights import random_model

        clip.save(random_model(clip.config.architecture(architecture)), path)

    def load(self, name: str, precision: str, device: str | None) -> dict[str, Any]:
        """precision: as for ``load_for_inference``, or "exact", which is what ``clip.load`` gives on a CPU."""
        from clip.inference.loading import load_for_inference, runtime_of

        with warnings.catch_warnings(record=True) as caught:  # as of an activation that the file does not tell
            warnings.simplefilter("always", UserWarning)
            if precision == "exact":
                import clip

                self.model, self.preprocess = clip.load(name, device="cpu")
            else:
                chosen: Any = precision
                self.model, self.preprocess = load_for_inference(name, device=device, precision=chosen)
        runtime = runtime_of(self.model)
        about = {"engine": runtime.engine, "precision": runtime.precision, "device": runtime.device}
        return {
            **about,
            "config": self.model.config.to_dict(),
            "warnings": [str(warning.message) for warning in caught],
        }

    def fingerprint(self, name: str) -> str:
        from clip.inference.loading import fingerprint_of

        return fingerprint_of(name)

    def embed(self, pictures: list[str] | None, texts: list[str], path: str) -> None:
        """Stores embeddings. pictures: files, or None for those of the package."""
        from clip import samples
        from clip.features import encode_images, encode_texts

        sources = [sample.image for sample in samples.pictures()] if pictures is None else pictures
        images = [batch.embeddings for batch in encode_images(self.model, self.preprocess, sources)]
        encoded = [batch.embeddings for batch in encode_texts(self.model, texts, truncate=True)]
        np.savez(path, images=np.concatenate(images), texts=np.concatenate(encoded))

    def warm(self, kind: str, batch_size: int) -> int:
        """The first call, which is slow. Gives the peak of memory up to here."""
        with _no_gradients():
            self._call(kind, batch_size)()
        return peak_memory()

    def time(self, kind: str, batch_size: int, seconds: float) -> list[float]:
        """Calls, and the seconds that they took: at least one call, and as many as begin in so long."""
        with _no_gradients():
            call, calls, start = self._call(kind, batch_size), 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds or not calls:
                call()
                calls += 1
        return [calls, elapsed]

    def _call(self, kind: str, batch_size: int) -> Callable[[], Any]:
        from clip.features import as_array

        config, rng = self.model.config, np.random.default_rng(0)
        encode: Callable[[Any], Any]
        batch: Any
        if kind == "images":
            side = config.image_resolution
            encode, batch = self.model.encode_image, rng.standard_normal((batch_size, 3, side, side), np.float32)
        else:
            encode, batch = self.model.encode_text, np.zeros((batch_size, config.context_length), np.int32)
            for row, length in zip(batch, text_lengths(batch_size, config.context_length), strict=True):
                row[: length - 1] = rng.integers(0, config.vocab_size - 1, length - 1)
                row[length - 1] = config.vocab_size - 1  # the end token is the largest id
        if "torch" in sys.modules and hasattr(self.model.logit_scale, "device"):
            import torch

            batch = torch.from_numpy(batch).to(self.model.logit_scale.device)
        return lambda: as_array(encode(batch))  # brought to the host, so that no device is still at work


@contextlib.contextmanager
def _no_gradients() -> Iterator[None]:
    """For a model of torch; an exported one runs without torch."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    with torch.inference_mode():
        yield


if __name__ == "__main__":
    main()
