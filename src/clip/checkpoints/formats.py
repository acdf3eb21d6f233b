"""State dicts of other implementations ↔ ours, which has OpenAI's keys: one table per format, used both ways.

A table is a list of entries ``ours ↔ theirs``. Only transformers also splits and transposes tensors; everything else
is a matter of names. A tensor that no table knows keeps its name, so that building the model can complain about it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from clip.errors import ConversionError, StateDictError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Entry", "detect", "strip_wrappers", "to_openai", "to_transformers", "transformers_table"]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of ours and what stands for it in a foreign state dict."""

    ours: str
    theirs: tuple[str, ...]
    """One name, or several whose tensors, one below the other, are ours."""
    is_transposed: bool = False


def _renamed(pairs: Iterable[tuple[str, str]]) -> list[Entry]:
    return [Entry(f"{ours}.{part}", (f"{theirs}.{part}",)) for ours, theirs in pairs for part in ("weight", "bias")]


_TRANSFORMERS_BLOCK = [
    *(
        Entry(f"attn.in_proj_{part}", tuple(f"self_attn.{which}_proj.{part}" for which in "qkv"))
        for part in ("weight", "bias")
    ),
    *_renamed(
        [
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ]
    ),
]
_TRANSFORMERS_REST = [
    Entry("visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",)),
    Entry("visual.class_embedding", ("vision_model.embeddings.class_embedding",)),
    Entry("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",)),
    Entry("visual.proj", ("visual_projection.weight",), is_transposed=True),
    Entry("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
    Entry("positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
    Entry("text_projection", ("text_projection.weight",), is_transposed=True),
    Entry("logit_scale", ("logit_scale",)),
    *_renamed(
        [
            ("visual.ln_pre", "vision_model.pre_layrnorm"),  # transformers spells it so
            ("visual.ln_post", "vision_model.post_layernorm"),
            ("ln_final", "text_model.final_layer_norm"),
        ]
    ),
]
_TRANSFORMERS_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.")


def transformers_table(vision_layers: int, text_layers: int) -> list[Entry]:
    """All tensors of transformers' ``CLIPModel`` with towers of so many layers."""
    return _TRANSFORMERS_REST + [
        Entry(
            f"{ours}.resblocks.{layer}.{entry.ours}",
            tuple(f"{theirs}.encoder.layers.{layer}.{name}" for name in entry.theirs),
        )
        for ours, theirs, layers in (
            ("visual.transformer", "vision_model", vision_layers),
            ("transformer", "text_model", text_layers),
        )
        for layer in range(layers)
        for entry in _TRANSFORMERS_BLOCK
    ]


T = TypeVar("T")
"""A tensor, of torch or of anybody: names are changed, and only transformers' tensors are computed with."""


def strip_wrappers(state_dict: Mapping[str, T]) -> dict[str, T]:
    """Without the prefixes that DataParallel, torch.compile and training frameworks put before every name."""
    stripped = dict(state_dict)
    while stripped:
        for prefix in ("module.", "_orig_mod.", "model."):
            if all(key.startswith(prefix) for key in stripped):
                stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
                break
        else:
            break
    return stripped


def detect(keys: Iterable[str]) -> str:
    """The layout of a state dict: "openai" (also OpenCLIP's usual one), "openclip-custom-text" or "transformers".

    Raises StateDictError if it is none of them.
    """
    names = set(keys)
    if any(name.startswith(("text_model.", "vision_model.")) for name in names):
        return "transformers"
    if any(name.startswith("text.") for name in names):
        return "openclip-custom-text"
    if any(name.startswith(("visual.", "transformer.resblocks.")) for name in names):
        return "openai"
    shown = ", ".join(sorted(names)[:5])
    raise StateDictError(f"not the state dict of a CLIP model: {len(names)} tensors, among them {shown or 'none'}")


def to_openai(state_dict: Mapping[str, T], layout: str) -> dict[str, T]:
    """A state dict of the given layout under OpenAI's keys.

    layout: as ``detect`` tells; tensors of "transformers" must be torch's.
    Raises StateDictError that lists what is missing, or parts that do not fit together.
    """
    # The causal mask of some versions, and the counting numbers of old transformers, are no weights.
    given = {k: v for k, v in state_dict.items() if not k.endswith(("attn_mask", "embeddings.position_ids"))}
    if layout == "openclip-custom-text":
        return {key.removeprefix("text."): value for key, value in given.items()}
    return _from_transformers(given) if layout == "transformers" else given


def _from_transformers(given: dict[str, Any]) -> dict[str, Any]:
    import torch

    layers: dict[str, set[str]] = {"vision": set(), "text": set()}
    for key in given:
        if match := _TRANSFORMERS_LAYER.match(key):
            layers[match[1]].add(match[2])
    result: dict[str, Any] = {}
    missing: list[str] = []
    for entry in transformers_table(len(layers["vision"]), len(layers["text"])):
        absent = [name for name in entry.theirs if name not in given]
        if absent:
            missing += absent
            continue
        parts = [given.pop(name) for name in entry.theirs]
        if len({(part.shape, part.dtype) for part in parts}) > 1 or (entry.is_transposed and parts[0].ndim != 2):
            raise StateDictError(f"{', '.join(entry.theirs)} have shapes {[tuple(part.shape) for part in parts]}")
        value = parts[0] if len(parts) == 1 else torch.cat(parts) if parts[0].ndim else torch.stack(parts)
        result[entry.ours] = value.t().contiguous() if entry.is_transposed else value
    if missing:
        raise StateDictError(f"{len(missing)} tensors are missing, among them {', '.join(missing[:5])}")
    return result | given


def to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with OpenAI's keys under those of transformers; ``to_openai`` undoes it, bit for bit.

    Raises ConversionError for what transformers cannot hold.
    """
    if "visual.proj" not in state_dict:
        raise ConversionError("transformers' CLIPModel has no ResNet: only models with a ViT can be written for it")
    rest = dict(state_dict)
    layers = {
        tower: len({match[1] for key in rest if (match := re.match(rf"{tower}transformer\.resblocks\.(\d+)\.", key))})
        for tower in (r"visual\.", "")
    }
    result: dict[str, Tensor] = {}
    for entry in transformers_table(layers[r"visual\."], layers[""]):
        value = rest.pop(entry.ours)
        value = value.t() if entry.is_transposed else value
        for name, part in zip(entry.theirs, value.chunk(len(entry.theirs)) if value.ndim else [value], strict=True):
            result[name] = part.contiguous()
    if rest:
        raise ConversionError(f"transformers' CLIPModel has no place for {', '.join(sorted(rest))}")
    return result
