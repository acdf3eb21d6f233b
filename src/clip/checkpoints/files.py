"""Reads and writes whole checkpoints: files and folders of every supported format ↔ ``Checkpoint``.

Read without being asked: zip archives of torch (state dicts, training checkpoints, TorchScript) and safetensors, alone
or in a folder with the configuration of OpenCLIP or transformers. No byte of a file is ever executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from clip.checkpoints import configs, formats
from clip.checkpoints.archives import read_archive
from clip.checkpoints.description import (
    OWN,
    SCALE,
    TOKENIZER,
    VERSION,
    Found,
    describe,
    describe_own,
    found_in_archive,
    read_folder,
)
from clip.checkpoints.mapped import fingerprint_of_parts
from clip.errors import CheckpointError, ConfigError, ConversionError, StateDictError, choices
from clip.model import CLIP, SIZES_IN_ARCHIVES, Activation, CLIPConfig, load_weights
from clip.preprocess import Preprocess

__all__ = [
    "Checkpoint",
    "Format",
    "fingerprint",
    "moved_into_place",
    "read_checkpoint",
    "read_licence",
    "write_checkpoint",
]

logger = logging.getLogger(__name__)

Format = Literal["everyclip", "openai", "openclip", "transformers"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model as it lies on disk: sizes, weights in their stored dtypes, and what is known of it."""

    config: CLIPConfig
    state_dict: dict[str, Tensor]
    """Under OpenAI's keys; may be views of the memory-mapped file."""
    preprocess: Preprocess
    source: str
    """What was found, in words: the format and where the activation comes from."""
    licence: str = ""
    """Terms of the weights, where the file says so."""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How ``clip train`` made the weights, as plain JSON values; empty for others. Only everyclip files hold it."""

    def build(self) -> CLIP:
        """The model with these very tensors, in eval mode. Raises StateDictError if they do not fit."""
        return load_weights(self.config, self.state_dict)


# Reading --------------------------------------------------------------------------------------------------------------


def read_licence(path: str | os.PathLike[str]) -> str:
    """The terms that a file states for its weights, or "" where it states none; no tensor is read.

    Only everyclip's own files state any. Raises nothing for other files, nor for damaged ones.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError):
        return ""
    return str(header.get("licence", "")) if header.get("format") == "everyclip" else ""


def read_checkpoint(path: str | os.PathLike[str], *, activation: Activation | None = None) -> Checkpoint:
    """The checkpoint in a file or folder, whatever its format.

    activation: for weights that do not tell; what a file says about itself is not overruled.
    Raises CheckpointError if the path holds none, or one that is damaged, hostile or of another design.
    """
    path = Path(path)
    try:
        found = read_folder(path, lambda file: _read_file(file).tensors) if path.is_dir() else _read_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    checkpoint = _understand(path, found, activation)
    _refuse_bad_numbers(path, checkpoint.state_dict)
    logger.info("%s: %s", path, checkpoint.source)
    return checkpoint


def _read_file(path: Path) -> Found[Tensor]:
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        return found_in_archive(path, read_archive(path))
    if len(start) == 9 and start[8:] == b"{":
        tensors, header = _read_safetensors(path)
        if header.get("format") == OWN:
            return Found(tensors=tensors, header=header, kind=OWN, name=path.name)
        return Found(tensors=tensors, header=header, kind="safetensors", name=path.name)
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a pickle from before torch 1.6, which is not read; "
            "save it again with torch.save in a recent torch, or as safetensors"
        )
    raise CheckpointError(
        f"{path} is no checkpoint: neither a zip archive of torch nor safetensors ({path.stat().st_size:,} bytes, "
        f"beginning with {start!r})"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a valid safetensors file: {error}; it may be cut: fetch it again"
        ) from error


def _understand(path: Path, found: Found[Tensor], activation: Activation | None) -> Checkpoint:
    try:
        if found.kind == OWN:
            description = describe_own(found.header, found.tensors)
            state_dict = dict(_dequantised(found.tensors))
        else:
            stripped = formats.strip_wrappers(found.tensors)
            layout = formats.detect(stripped)
            state_dict = formats.to_openai(stripped, layout)
            description = describe(found, state_dict, layout, activation)
            state_dict = {key: value for key, value in state_dict.items() if key not in SIZES_IN_ARCHIVES}
    except (StateDictError, CheckpointError, ConfigError) as error:
        kind = type(error) if isinstance(error, CheckpointError) else CheckpointError
        raise kind(f"{path}: {error}") from error
    return Checkpoint(
        config=description.config,
        state_dict=state_dict,
        preprocess=description.preprocess,
        source=description.source,
        licence=description.licence,
        training=description.training,
    )


def _dequantised(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, value in tensors.items():
        if key.endswith(SCALE) and key.removesuffix(SCALE) in tensors:
            continue
        scale = tensors.get(key + SCALE)
        if scale is None:
            yield key, value
        elif value.dtype != torch.int8 or value.ndim != 2 or scale.shape != (len(value), 1):
            raise StateDictError(f"{key} is not int8 rows with a factor each")
        else:
            yield key, value.float() * scale.float()


def _refuse_bad_numbers(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    for key, value in state_dict.items():
        if not value.is_floating_point():
            if not key.endswith("num_batches_tracked"):
                raise StateDictError(f"{path}: {key} is {value.dtype}; weights are floating-point numbers")
        elif value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise StateDictError(f"{path}: {key} is {value.dtype}; supported are 16, 32 and 64 bits")
        # One sum shows any bad number at the cost of reading; only a suspicious one is looked at closely.
        elif not torch.isfinite(value.sum(dtype=torch.float32)) and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise CheckpointError(f"{path}: {key} has {bad:,} values that are not finite (NaN or infinite)")


# Writing --------------------------------------------------------------------------------------------------------------


def write_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    to: Format = "everyclip",
    *,
    int8_rows: tuple[str, ...] = (),
) -> None:
    """Writes a checkpoint under a path that does not exist yet; it appears there whole or not at all.

    to: "everyclip" (one safetensors file), "openai" (one ``torch.save`` of the state dict), "openclip" or
    "transformers" (a folder with configuration and safetensors, as those libraries load it).
    int8_rows: tensors that an everyclip file keeps as 8-bit rows with a factor each; the others stay bit-equal.
    Raises ConversionError for what the format cannot hold.
    """
    path = Path(path)
    if to not in get_args(Format):
        raise ConversionError(f"format {to!r} is not known; known are {choices(to, get_args(Format))}")
    if path.exists():
        raise CheckpointError(f"{path} exists; remove it or choose another name")
    checkpoint.build()  # what does not fit must not be written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with moved_into_place(path) as place:
            if to == "everyclip":
                _write_own(checkpoint, place, int8_rows)
            elif to == "openai":
                _write_openai(checkpoint, place)
            elif to == "openclip":
                _write_openclip(checkpoint, place)
            else:
                _write_transformers(checkpoint, place)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def moved_into_place(path: Path) -> Iterator[Path]:
    """A place beside ``path`` for a file or folder, renamed to ``path`` if all goes well."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        place = Path(folder) / path.name
        yield place
        for file in [place] if place.is_file() else sorted(place.iterdir()):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            raise CheckpointError(f"{path} has appeared meanwhile; it is left as it is")
        place.rename(path)


def fingerprint(config: CLIPConfig, state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over sizes, names, dtypes and bytes of a model: equal for equal models, whatever file they came from."""

    def parts() -> Iterator[tuple[str, str, tuple[int, ...], Any]]:
        for key in sorted(state_dict):
            value = state_dict[key].detach().cpu().contiguous()
            dtype = str(value.dtype).removeprefix("torch.")
            yield key, dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy()

    return fingerprint_of_parts(config, parts())


def _write_own(checkpoint: Checkpoint, path: Path, int8_rows: tuple[str, ...]) -> None:
    tensors: dict[str, Tensor] = {}
    for key, value in checkpoint.state_dict.items():
        if key in int8_rows:
            scale = value.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
            tensors[key + SCALE] = scale
            value = torch.round(value.float() / scale).to(torch.int8)
        tensors[key] = value
    header = {
        "format": "everyclip",
        "version": VERSION,
        "config": json.dumps(checkpoint.config.to_dict()),
        "preprocess": json.dumps(checkpoint.preprocess.to_dict()),
        "tokenizer": TOKENIZER,
        "licence": checkpoint.licence,
        "fingerprint": fingerprint(checkpoint.config, dict(_dequantised(tensors))),
    }
    if checkpoint.training:
        header["training"] = json.dumps(dict(checkpoint.training), ensure_ascii=False)
    _save_safetensors(tensors, path, header)


def _save_safetensors(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    from safetensors.torch import save_file

    # Copies: views of one memory-mapped file look to safetensors like tied weights, which it refuses.
    save_file(
        {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()},
        path,
        header,
    )


def _write_openai(checkpoint: Checkpoint, path: Path) -> None:
    """OpenAI's loader knows one design: QuickGELU, heads of 64, MLPs of four times the width, its own statistics."""
    config, preprocess = checkpoint.config, checkpoint.preprocess
    plain = CLIPConfig.from_state_dict(checkpoint.state_dict)
    plain = dataclasses.replace(plain, vision_heads=0, vision_mlp_width=0, transformer_heads=0, transformer_mlp_width=0)
    plain = dataclasses.replace(plain, logit_bias=False)
    for field in dataclasses.fields(CLIPConfig):
        own, theirs = getattr(config, field.name), getattr(plain, field.name)
        if own != theirs:
            raise ConversionError(
                f"OpenAI's format cannot hold {field.name} {own!r}; its loader always takes {theirs!r}"
            )
    if preprocess != Preprocess(size=config.image_resolution):
        raise ConversionError(
            f"OpenAI's format cannot hold {preprocess}; its loader always prepares pictures its own way"
        )
    sizes = (config.image_resolution, config.context_length, config.vocab_size)
    # The entries by which OpenAI's archives are known, here and to OpenAI's build_model, which drops them.
    marks = {key: torch.tensor(value) for key, value in zip(SIZES_IN_ARCHIVES, sizes, strict=True)}
    torch.save({key: value.detach().cpu().clone() for key, value in checkpoint.state_dict.items()} | marks, path)


def _write_openclip(checkpoint: Checkpoint, path: Path) -> None:
    path.mkdir()
    config = configs.openclip_config(checkpoint.config, checkpoint.preprocess)
    if checkpoint.config.is_resnet and checkpoint.config.vision_heads * 2 != checkpoint.config.vision_width:
        raise ConversionError(f"OpenCLIP's ResNets have heads of width 64, not {checkpoint.config.vision_heads} heads")
    _write_json(path / "open_clip_config.json", config)
    _save_safetensors(checkpoint.state_dict, path / "open_clip_model.safetensors", {"format": "pt"})


def _write_transformers(checkpoint: Checkpoint, path: Path) -> None:
    if checkpoint.preprocess.resize == "longest":
        raise ConversionError("transformers' CLIPImageProcessor cannot hold resize 'longest'")
    tensors = formats.to_transformers(checkpoint.state_dict)
    path.mkdir()
    _write_json(path / "config.json", configs.transformers_config(checkpoint.config))
    _write_json(path / "preprocessor_config.json", configs.transformers_preprocessor(checkpoint.preprocess))
    _save_safetensors(tensors, path / "model.safetensors", {"format": "pt"})
    _write_tokenizer(checkpoint.config, path)


def _write_tokenizer(config: CLIPConfig, path: Path) -> None:
    """The files of transformers' ``CLIPTokenizer``, from our vocabulary."""
    from clip.simple_tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    if config.vocab_size != len(tokenizer.encoder):
        return  # a model with a vocabulary of its own, which we do not have
    _write_json(path / "vocab.json", tokenizer.encoder)
    merges = "".join(f"{' '.join(pair)}\n" for pair in tokenizer.bpe_ranks)
    (path / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    _write_json(path / "special_tokens_map.json", special)
    _write_json(
        path / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "CLIPTokenizer",
            "do_lower_case": True,
            "model_max_length": config.context_length,
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
