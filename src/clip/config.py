"""The sizes of a CLIP, and those of the published ones by name. Plain numbers: torch is not needed to read them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from clip.errors import ConfigError, ModelNotFoundError, StateDictError, choices

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ARCHITECTURES", "INITIAL_LOGIT_BIAS", "SIZES_IN_ARCHIVES", "Activation", "CLIPConfig", "architecture"]

Activation = Literal["quick_gelu", "gelu"]

INITIAL_LOGIT_BIAS = -10.0
"""Of the sigmoid loss, so that the many wrong pairs of a large batch begin as such (Zhai et al. 2023, section 3.2)."""

SIZES_IN_ARCHIVES = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's archives that are no weights."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CLIPConfig:
    """Sizes of both towers. The names are those of OpenAI's constructor."""

    embed_dim: int
    """Width of the joint space."""
    image_resolution: int
    """Side of the square input image, in pixels."""
    vision_layers: int | tuple[int, int, int, int]
    """Number of Transformer blocks, or of bottleneck blocks in each of a ResNet's four stages."""
    vision_width: int
    """Width of the ViT, or of the ResNet's first stage before expansion."""
    vision_patch_size: int | None
    """Side of a ViT's patch in pixels; None for a ResNet."""
    vision_heads: int = 0
    """Attention heads of the ViT or of the ResNet's attention pool; 0 means heads of width 64."""
    vision_mlp_width: int = 0
    """Hidden width of the ViT's MLPs; 0 means four times the width."""
    context_length: int = 77
    """Longest text, in tokens, with its start and end tokens."""
    vocab_size: int = 49408
    """Rows of the token table."""
    transformer_width: int
    """Width of the text tower."""
    transformer_heads: int = 0
    """Attention heads of the text tower; 0 means heads of width 64."""
    transformer_layers: int
    """Blocks of the text tower."""
    transformer_mlp_width: int = 0
    """Hidden width of the text tower's MLPs; 0 means four times the width."""
    activation: Activation = "quick_gelu"
    """Of the MLPs of both Transformers: all of OpenAI's models use QuickGELU, most of OpenCLIP's GELU."""
    logit_bias: bool = False
    """Whether a learned number is added to all logits, as the sigmoid loss needs it."""

    def __post_init__(self) -> None:
        layers = self.vision_layers if isinstance(self.vision_layers, tuple) else (self.vision_layers,)
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type == "int"}
        sizes |= {f"vision_layers[{i}]": count for i, count in enumerate(layers)}
        for name, value in sizes.items():
            least = 0 if name.endswith(("heads", "mlp_width")) else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
        if self.activation not in ("quick_gelu", "gelu"):
            raise ConfigError(f"activation is {self.activation!r}; it must be 'quick_gelu' or 'gelu'")
        if not isinstance(self.logit_bias, bool):
            raise ConfigError(f"logit_bias is {self.logit_bias!r}; it must be true or false")
        if self.is_resnet:
            if len(layers) != 4:
                raise ConfigError(f"vision_layers has {len(layers)} stages; a ResNet has 4")
            if self.image_resolution % 32:
                raise ConfigError(f"image_resolution is {self.image_resolution}; a ResNet needs a multiple of 32")
        elif not isinstance(self.vision_patch_size, int) or not 0 < self.vision_patch_size <= self.image_resolution:
            raise ConfigError(
                f"vision_patch_size is {self.vision_patch_size!r}; a ViT needs 1 to image_resolution "
                f"({self.image_resolution})"
            )
        pool_width = self.vision_width * 32 if self.is_resnet else self.vision_width
        self._derive("vision_heads", max(1, pool_width // 64))
        self._derive("vision_mlp_width", 4 * self.vision_width)
        self._derive("transformer_heads", max(1, self.transformer_width // 64))
        self._derive("transformer_mlp_width", 4 * self.transformer_width)
        for field, width in (("vision_heads", pool_width), ("transformer_heads", self.transformer_width)):
            if width % getattr(self, field):
                raise ConfigError(f"{field} is {getattr(self, field)}; it must divide the width, {width}")

    def _derive(self, field: str, value: int) -> None:
        if getattr(self, field) == 0:
            object.__setattr__(self, field, value)

    @property
    def is_resnet(self) -> bool:
        """Whether the image tower is a ModifiedResNet (else a VisionTransformer)."""
        return isinstance(self.vision_layers, tuple)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as stored in a checkpoint.

        Without ``logit_bias`` where there is none: files and fingerprints of such models stay as they always were.
        """
        values = dataclasses.asdict(self)
        return values if self.logit_bias else {key: value for key, value in values.items() if key != "logit_bias"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        """Reads what ``to_dict`` wrote. Raises ConfigError for an unknown or missing key."""
        known = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(f"unknown configuration keys {unknown}; known are {sorted(known)}")
        if missing := sorted(name for name, required in known.items() if required and name not in values):
            raise ConfigError(f"configuration keys {missing} are missing")
        layers = values["vision_layers"]
        return cls(**{**values, "vision_layers": tuple(layers) if isinstance(layers, list) else layers})

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], *, activation: Activation = "quick_gelu") -> CLIPConfig:
        """Recovers the sizes from the shapes of a state dict with OpenAI's keys.

        Shapes do not tell the activation, nor the number of heads: heads are 64 wide except in the published sizes
        of ``_HEAD_WIDTHS``. Raises StateDictError if a tensor that tells a size is missing or of the wrong rank.
        """

        def shape(key: str, rank: int) -> tuple[int, ...]:
            if key not in state_dict:
                raise StateDictError(f"not a CLIP state dict: '{key}' is missing ({len(state_dict)} tensors found)")
            if state_dict[key].ndim != rank:
                raise StateDictError(f"'{key}' has shape {tuple(state_dict[key].shape)}; {rank} dimensions expected")
            return tuple(state_dict[key].shape)

        def count(pattern: str) -> int:
            return len({match[1] for key in state_dict if (match := re.match(pattern, key))})

        vision_layers: int | tuple[int, int, int, int]
        if "visual.proj" in state_dict or "visual.class_embedding" in state_dict:
            vision_width, _, patch_size, _ = shape("visual.conv1.weight", 4)
            vision_layers = count(r"visual\.transformer\.resblocks\.(\d+)\.")
            grid = math.isqrt(max(0, shape("visual.positional_embedding", 2)[0] - 1))
            sizes = {
                "vision_patch_size": patch_size,
                "image_resolution": grid * patch_size,
                "vision_heads": vision_width // _HEAD_WIDTHS.get((vision_width, vision_layers), 64),
                "vision_mlp_width": shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            }
        else:
            vision_width = shape("visual.layer1.0.conv1.weight", 4)[0]
            first, second, third, fourth = (count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
            vision_layers = (first, second, third, fourth)
            grid = math.isqrt(max(0, shape("visual.attnpool.positional_embedding", 2)[0] - 1))
            sizes = {"image_resolution": grid * 32}
        try:
            return cls(
                embed_dim=shape("text_projection", 2)[1],
                vision_layers=vision_layers,
                vision_width=vision_width,
                vision_patch_size=sizes.pop("vision_patch_size", None),
                context_length=shape("positional_embedding", 2)[0],
                vocab_size=shape("token_embedding.weight", 2)[0],
                transformer_width=shape("ln_final.weight", 1)[0],
                transformer_layers=count(r"transformer\.resblocks\.(\d+)\."),
                transformer_mlp_width=shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
                activation=activation,
                logit_bias="logit_bias" in state_dict,
                **sizes,
            )
        except ConfigError as error:
            raise StateDictError(f"the shapes do not make a CLIP: {error}") from error


# Head widths other than 64 by (vision_width, vision_layers): OpenCLIP's model_configs of H/14, g/14 and bigG/14.
_HEAD_WIDTHS = {(1280, 32): 80, (1408, 40): 88, (1664, 48): 104}


def _openai(
    embed_dim: int,
    pixels: int,
    layers: int | tuple[int, int, int, int],
    width: int,
    patch_size: int | None = None,
    text_width: int = 512,
) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=embed_dim,
        image_resolution=pixels,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch_size,
        transformer_width=text_width,
        transformer_layers=12,
    )


def _laion(embed_dim: int, layers: int, width: int, mlp_width: int, text_width: int, text_layers: int) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=embed_dim,
        image_resolution=224,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=14,
        vision_heads=width // _HEAD_WIDTHS[width, layers],
        vision_mlp_width=mlp_width,
        transformer_width=text_width,
        transformer_layers=text_layers,
        activation="gelu",
    )


ARCHITECTURES: dict[str, CLIPConfig] = {
    "RN50": _openai(1024, 224, (3, 4, 6, 3), 64),
    "RN101": _openai(512, 224, (3, 4, 23, 3), 64),
    "RN50x4": _openai(640, 288, (4, 6, 10, 6), 80, None, 640),
    "RN50x16": _openai(768, 384, (6, 8, 18, 8), 96, None, 768),
    "RN50x64": _openai(1024, 448, (3, 15, 36, 10), 128, None, 1024),
    "ViT-B/32": _openai(512, 224, 12, 768, 32, 512),
    "ViT-B/16": _openai(512, 224, 12, 768, 16, 512),
    "ViT-L/14": _openai(768, 224, 24, 1024, 14, 768),
    "ViT-L/14@336px": _openai(768, 336, 24, 1024, 14, 768),
    "ViT-H-14": _laion(1024, 32, 1280, 5120, 1024, 24),
    "ViT-g-14": _laion(1024, 40, 1408, 6144, 1024, 24),
    "ViT-bigG-14": _laion(1280, 48, 1664, 8192, 1280, 32),
}
"""Sizes by name: OpenAI's nine (QuickGELU), then LAION's three by OpenCLIP's names (GELU)."""


def architecture(name: str) -> CLIPConfig:
    """The sizes of an architecture by OpenAI's or by OpenCLIP's name.

    OpenCLIP writes ``ViT-B-32`` for the sizes of ``ViT-B/32`` with GELU, and ``ViT-B-32-quickgelu`` for OpenAI's own;
    ``RN50`` alone is OpenAI's here. Raises ModelNotFoundError, naming the known ones, for any other name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    base = name.removesuffix("-quickgelu")
    dashed = {key.replace("/", "-").replace("@336px", "-336"): key for key in ARCHITECTURES}
    if base not in dashed:
        raise ModelNotFoundError(f"architecture {name!r} is not known; known are {choices(name, ARCHITECTURES)}")
    return dataclasses.replace(ARCHITECTURES[dashed[base]], activation="gelu" if base == name else "quick_gelu")
