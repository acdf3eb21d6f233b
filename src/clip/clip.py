"""OpenAI's API: ``load``, ``tokenize``, ``available_models``; and with the same model objects ``save`` and ``convert``.

Code written for OpenAI's ``clip`` runs unchanged; what differs is listed in the README under "Compatibility".
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip.checkpoints.registry import OPENAI_MODELS
from clip.errors import ConfigError, ModelNotFoundError, choices

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clip.checkpoints.files import Checkpoint, Format
    from clip.model import CLIP, Activation
    from clip.preprocess import Preprocess

__all__ = ["available_models", "convert", "find", "find_here", "load", "save", "tokenize"]

Precision = Literal["fp32", "fp16", "bf16"]

BUNDLED = "pocket"
"""The small model that comes with the package."""

# OpenAI compatibility: read at each call, because people add their own models to it.
_MODELS: dict[str, str] = {name: model.url for name, model in OPENAI_MODELS.items()}


def available_models() -> list[str]:
    """Names that ``load`` takes: OpenAI's nine in their order, then ``pocket``, which needs no download."""
    return [*_MODELS, BUNDLED]


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    *,
    precision: Precision | None = None,
    activation: Activation | None = None,
) -> tuple[CLIP, Preprocess]:
    """A model in eval mode, and the function that turns a PIL image into its input tensor (3, H, W).

    name: one of ``available_models()``; the path of a file or folder in any format of OpenAI, OpenCLIP, transformers or
        everyclip; or a repository on the Hugging Face Hub as ``organisation/name`` (extra ``hub``).
    device: "cuda" where there is one, else "cpu".
    jit: accepted and ignored with a warning; there is one model, and no TorchScript is run.
    download_root: folder for downloads, by default ``~/.cache/clip``.
    precision: of the weights that inputs are multiplied with. By default "fp16" on CUDA, as OpenAI's, and "fp32"
        everywhere else; similarities are computed in fp32 always.
    activation: "quick_gelu" or "gelu", for weights that do not tell themselves.
    Raises ModelNotFoundError, DownloadError, CheckpointError.
    """
    import torch

    from clip.checkpoints.files import read_checkpoint
    from clip.model import convert_weights

    if jit:
        warnings.warn(
            "jit=True has no effect: the model is an ordinary module, and TorchScript is not run", stacklevel=2
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    precision = precision or ("fp16" if device.type == "cuda" else "fp32")
    if precision not in dtypes:
        raise ConfigError(f"precision is {precision!r}; it must be one of {choices(precision, dtypes)}")
    checkpoint = read_checkpoint(find(name, download_root), activation=activation)
    weights = {
        key: value.to(device, torch.float32 if value.is_floating_point() else value.dtype)
        for key, value in checkpoint.state_dict.items()
    }
    model = dataclasses.replace(checkpoint, state_dict=weights).build().to(device)
    if precision != "fp32":
        convert_weights(model, dtypes[precision])
    return model, checkpoint.preprocess


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False, *, special_words: bool = True
) -> Tensor:
    """Token ids (N, ``context_length``), int32, with start and end token, padded with 0.

    truncate: cut long texts, keeping the end token, instead of raising TextTooLongError.
    special_words: whether ``<|endoftext|>`` in a text means the special token, as in OpenAI's package, so that what
        follows it is ignored. Pass False for texts from strangers.
    """
    import torch

    from clip.simple_tokenizer import token_ids

    return torch.from_numpy(token_ids(texts, context_length, truncate, special_words=special_words))


def save(
    model: CLIP,
    path: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    *,
    to: Format = "everyclip",
    licence: str = "",
) -> None:
    """Writes a model, with its preprocessing, under a path that does not exist yet.

    preprocess: as ``load`` gave it; None means OpenAI's at the model's resolution.
    to: "everyclip", "openai", "openclip" or "transformers"; see ``convert``.
    Raises ConversionError for what the format cannot hold.
    """
    from clip.checkpoints.files import Checkpoint, write_checkpoint
    from clip.preprocess import Preprocess

    preprocess = preprocess or Preprocess(size=model.config.image_resolution)
    state_dict = {key: value.detach() for key, value in model.state_dict().items()}
    checkpoint = Checkpoint(
        config=model.config, state_dict=state_dict, preprocess=preprocess, source="a model in memory", licence=licence
    )
    write_checkpoint(checkpoint, path, to)


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: Format = "everyclip",
    *,
    activation: Activation | None = None,
    download_root: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Rewrites a checkpoint in another format, its numbers untouched, and gives what was read.

    source: as for ``load``. destination: a file for "everyclip" (safetensors) and "openai" (a state dict), a folder for
    "openclip" and "transformers". Raises ConversionError for what the format cannot hold.
    """
    from clip.checkpoints.files import read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(find(source, download_root), activation=activation)
    write_checkpoint(checkpoint, destination, to)
    return checkpoint


def find(name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None) -> Path:
    """The local file or folder of a model, fetched if need be."""
    text = os.fspath(name)
    if text in _MODELS:
        return Path(_download(_MODELS[text], download_root))
    if text == BUNDLED:
        return Path(__file__).with_name(f"{BUNDLED}.safetensors")
    if os.path.exists(text):  # noqa: PTH110 (a name may hold a NUL, which pathlib refuses loudly)
        return Path(text)
    from clip.checkpoints.hub import fetch_repository, is_repository_id

    looks_like_openai = re.match(r"(ViT|RN\d)", text, re.IGNORECASE)
    if is_repository_id(text) and not looks_like_openai:
        return fetch_repository(text)
    raise ModelNotFoundError(
        f"model {text!r} not found, and no file or folder has that name; available models: "
        f"{choices(text, available_models())}"
    )


def find_here(name: str | os.PathLike[str]) -> Path | None:
    """The local file or folder of a model, or None where it would have to be fetched, or is not known."""
    text = os.fspath(name)
    if text in _MODELS:
        from clip.checkpoints.download import default_directory
        from clip.checkpoints.registry import sha256_in_url
        from clip.checkpoints.verified import is_verified

        path, sha256 = default_directory() / os.path.basename(_MODELS[text]), sha256_in_url(_MODELS[text])  # noqa: PTH119
        return path if path.is_file() and (sha256 is None or is_verified(path, sha256)) else None
    return find(name, None) if text == BUNDLED or os.path.exists(text) else None  # noqa: PTH110


def _download(url: str, root: str | os.PathLike[str] | None = None) -> str:
    """OpenAI compatibility: fetches a model whose address carries its SHA-256, and gives its path."""
    from clip.checkpoints.download import default_directory, fetch
    from clip.checkpoints.registry import sha256_in_url

    return str(fetch(url, sha256=sha256_in_url(url), directory=root or default_directory()))


def _transform(n_px: int) -> Preprocess:
    """OpenAI compatibility: the preprocessing for a model with images of ``n_px`` pixels."""
    from clip.preprocess import Preprocess

    return Preprocess(size=n_px)


def __getattr__(name: str) -> Any:
    if name == "_tokenizer":  # OpenAI compatibility: read at import there, on first use here
        from clip.simple_tokenizer import default_tokenizer

        return default_tokenizer()
    raise AttributeError(f"module 'clip.clip' has no attribute {name!r}")
