"""Configuration files of OpenCLIP and transformers ↔ CLIPConfig and Preprocess.

Sizes are never taken from a file: the shapes of the weights tell them. Read from it is only what shapes do not tell,
and a setting that our towers do not have is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from clip.config import INITIAL_LOGIT_BIAS, Activation, CLIPConfig
from clip.errors import CheckpointError, ConfigError
from clip.preprocess import Preprocess

__all__ = [
    "Settings",
    "openclip_config",
    "read_json",
    "read_openclip_config",
    "read_transformers_config",
    "read_transformers_preprocessor",
    "transformers_config",
    "transformers_preprocessor",
]

MAX_JSON_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a configuration file tells that the weights do not. None where it does not say."""

    activation: Activation | None = None
    vision_heads: int | None = None
    transformer_heads: int | None = None
    preprocess: Preprocess | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most a megabyte. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_JSON_BYTES:,} bytes, too many for a configuration")
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{key} is {section!r}; it must be an object")
    return section


def _heads(width: Any, head_width: Any) -> int | None:
    if width is None:
        return None
    if not (isinstance(width, int) and isinstance(head_width, int) and width > 0 and head_width > 0):
        raise CheckpointError(
            f"width is {width!r} and the width of a head {head_width!r}; they must be positive integers"
        )
    return width // head_width


def _integer(values: Mapping[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{key} is {value!r}; it must be a positive integer")
    return value


def _refuse(where: str, values: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]) -> None:
    for key, allowed in accepted.items():
        if key in values and values[key] not in allowed:
            raise CheckpointError(
                f"{where}.{key} is {values[key]!r}, which is no CLIP of OpenAI's design; supported is {allowed[0]!r}"
            )


# OpenCLIP -------------------------------------------------------------------------------------------------------------

# Settings of OpenCLIP that change what is computed, with the values under which it is what we compute.
_OPENCLIP_VISION: dict[str, tuple[Any, ...]] = {
    "timm_model_name": (None,),
    "pool_type": ("tok",),
    "attentional_pool": (False,),
    "attn_pooler_queries": (256,),
    "no_ln_pre": (False,),
    "final_ln_after_pool": (False,),
    "input_patchnorm": (False,),
    "ls_init_value": (None,),
    "pos_embed_type": ("learnable",),
    "output_tokens": (False,),
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}),
}
_OPENCLIP_TEXT: dict[str, tuple[Any, ...]] = {
    "hf_model_name": (None,),
    "pool_type": ("argmax",),
    "proj_type": ("linear",),
    "proj_bias": (False,),
    "no_causal_mask": (False,),
    "embed_cls": (False,),
    "ls_init_value": (None,),
    "output_tokens": (False,),
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}),
}


def read_openclip_config(values: Mapping[str, Any], *, image_resolution: int) -> Settings:
    """What ``open_clip_config.json`` tells. Raises CheckpointError for a design that is not OpenAI's."""
    model = _section(values, "model_cfg")
    vision, text = _section(model, "vision_cfg"), _section(model, "text_cfg")
    _refuse("vision_cfg", vision, _OPENCLIP_VISION)
    _refuse("text_cfg", text, _OPENCLIP_TEXT)
    cfg = _section(values, "preprocess_cfg")
    known = {"mean", "std", "interpolation", "resize_mode", "fill_color", "size", "mode"}
    if unknown := sorted(set(cfg) - known):
        raise CheckpointError(f"preprocess_cfg has unknown fields {unknown}; known are {sorted(known)}")
    fields = {"resize": cfg.get("resize_mode", "shortest"), "fill": cfg.get("fill_color", 0)}
    fields |= {key: cfg[key] for key in ("mean", "std", "interpolation") if key in cfg}
    try:
        preprocess = Preprocess.from_dict({"size": image_resolution, **fields})
    except ConfigError as error:
        raise CheckpointError(f"preprocess_cfg: {error}") from error
    is_vit = isinstance(vision.get("layers"), int)
    return Settings(
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        vision_heads=_heads(vision.get("width"), vision.get("head_width", 64)) if is_vit else None,
        transformer_heads=_integer(text, "heads", 8),
        preprocess=preprocess,
    )


def openclip_config(config: CLIPConfig, preprocess: Preprocess) -> dict[str, Any]:
    """``open_clip_config.json`` for a model. OpenCLIP's ResNets take their heads from the width, as ours."""
    vision: dict[str, Any] = {
        "image_size": config.image_resolution,
        "layers": list(config.vision_layers) if isinstance(config.vision_layers, tuple) else config.vision_layers,
        "width": config.vision_width,
        "patch_size": config.vision_patch_size,
    }
    if not config.is_resnet:
        ratio = config.vision_mlp_width / config.vision_width
        if int(config.vision_width * ratio) != config.vision_mlp_width:  # OpenCLIP cuts the product to an integer
            ratio = math.nextafter(ratio, math.inf)
        vision |= {"head_width": config.vision_width // config.vision_heads, "mlp_ratio": ratio}
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.transformer_width,
        "heads": config.transformer_heads,
        "layers": config.transformer_layers,
        "mlp_ratio": config.transformer_mlp_width / config.transformer_width,
    }
    model = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if config.activation == "quick_gelu":
        model["quick_gelu"] = True
    if config.logit_bias:  # OpenCLIP makes the parameter only where it is told the value to begin with
        model["init_logit_bias"] = INITIAL_LOGIT_BIAS
    return {
        "model_cfg": model,
        "preprocess_cfg": {
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize,
            "fill_color": preprocess.fill,
        },
    }


# transformers ---------------------------------------------------------------------------------------------------------

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL.Image.Resampling


def read_transformers_config(values: Mapping[str, Any]) -> Settings:
    """What ``config.json`` of a ``CLIPModel`` tells. Raises CheckpointError for another kind of model."""
    if values.get("model_type") != "clip":
        raise CheckpointError(f"config.json is of a {values.get('model_type')!r} model; 'clip' is supported")
    text, vision = _section(values, "text_config"), _section(values, "vision_config")
    activations = {section.get("hidden_act", "quick_gelu") for section in (text, vision)}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise CheckpointError(f"hidden_act is {sorted(activations)}; one of 'quick_gelu' and 'gelu' for both towers")
    for name, section in (("text_config", text), ("vision_config", vision)):
        _refuse(name, section, {"layer_norm_eps": (1e-5,)})
    return Settings(
        activation=cast(Activation, activations.pop()),
        vision_heads=_integer(vision, "num_attention_heads", 12),
        transformer_heads=_integer(text, "num_attention_heads", 8),
    )


def read_transformers_preprocessor(values: Mapping[str, Any]) -> Preprocess:
    """``preprocessor_config.json`` as Preprocess. Raises CheckpointError for steps that it cannot hold."""
    size, crop = values.get("size", 224), values.get("crop_size", 224)
    crop_sides = {crop} if isinstance(crop, int) else set(_sides(crop, "crop_size"))
    is_cropped = values.get("do_center_crop", True)
    if isinstance(size, int):
        resize, sides = "shortest", {size}
    elif isinstance(size, dict) and set(size) == {"shortest_edge"}:
        resize, sides = "shortest", {size["shortest_edge"]}
    else:
        resize, sides = "squash", set(_sides(size, "size"))
    if is_cropped:
        sides |= crop_sides
    if len(sides) != 1 or (resize == "shortest" and not is_cropped):
        raise CheckpointError(
            f"preprocessor_config.json resizes to {size} and crops to {crop if is_cropped else None}; "
            "one square size for both is supported"
        )
    modes = {number: name for name, number in _RESAMPLE.items()}
    if (resample := values.get("resample", 3)) not in modes:
        raise CheckpointError(f"resample is {resample!r}; supported are {sorted(modes)} (bilinear, bicubic)")
    fields = {"mean": values.get("image_mean"), "std": values.get("image_std")}
    try:
        return Preprocess.from_dict(
            {"size": sides.pop(), "resize": resize, "interpolation": modes[resample]}
            | {key: value for key, value in fields.items() if value is not None}
        )
    except ConfigError as error:
        raise CheckpointError(f"preprocessor_config.json: {error}") from error


def _sides(value: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(value, dict) or set(value) != {"height", "width"}:
        raise CheckpointError(f"{name} is {value!r}; height and width, or one number, are expected")
    return value["height"], value["width"]


def transformers_config(config: CLIPConfig) -> dict[str, Any]:
    """``config.json`` of a ``CLIPModel`` with a ViT."""
    assert isinstance(config.vision_layers, int)
    shared = {
        "hidden_act": config.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": config.embed_dim,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
    }
    start, end = config.vocab_size - 2, config.vocab_size - 1
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            **shared,
            "model_type": "clip_text_model",
            "hidden_size": config.transformer_width,
            "intermediate_size": config.transformer_mlp_width,
            "num_attention_heads": config.transformer_heads,
            "num_hidden_layers": config.transformer_layers,
            "max_position_embeddings": config.context_length,
            "vocab_size": config.vocab_size,
            "bos_token_id": start,
            "eos_token_id": end,
        },
        "vision_config": {
            **shared,
            "model_type": "clip_vision_model",
            "hidden_size": config.vision_width,
            "intermediate_size": config.vision_mlp_width,
            "num_attention_heads": config.vision_heads,
            "num_hidden_layers": config.vision_layers,
            "image_size": config.image_resolution,
            "patch_size": config.vision_patch_size,
            "num_channels": 3,
        },
    }


def transformers_preprocessor(preprocess: Preprocess) -> dict[str, Any]:
    """``preprocessor_config.json`` for transformers' ``CLIPImageProcessor``.

    Its centre crop rounds odd margins down where OpenAI's rounds to even: pictures may lie a pixel apart.
    """
    sides = {"height": preprocess.size, "width": preprocess.size}
    is_cropped = preprocess.resize == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": preprocess.size} if is_cropped else sides,
        "resample": _RESAMPLE[preprocess.interpolation],
        "do_center_crop": is_cropped,
        "crop_size": sides,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
