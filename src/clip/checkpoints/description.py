"""What a checkpoint says of its model: in names, shapes, its header, and the configuration beside it.

No number of a tensor is looked at, so the tensors may be torch's or any others that have a shape, and torch is not
imported.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clip.checkpoints import configs, formats
from clip.checkpoints.tags import find_tag
from clip.config import SIZES_IN_ARCHIVES, Activation, CLIPConfig
from clip.errors import CheckpointError
from clip.preprocess import Preprocess

if TYPE_CHECKING:
    from clip.checkpoints.archives import Archive

__all__ = [
    "OWN",
    "SCALE",
    "TOKENIZER",
    "VERSION",
    "Description",
    "Found",
    "describe",
    "describe_own",
    "found_in_archive",
    "read_folder",
]

OWN = "everyclip"
"""Kind of a file in our own format."""
VERSION = "1"
"""Of our own format; a reader refuses a later one."""
SCALE = "_scale"
"""Suffix of the per-row factors of a tensor that is stored as int8 rows."""

TOKENIZER = "openai-bpe-49408"
"""What our own format calls ``SimpleTokenizer`` with OpenAI's vocabulary."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found(Generic[T]):
    """Tensors under their own names, and what stood beside them."""

    tensors: dict[str, T]
    kind: str
    settings: configs.Settings = dataclasses.field(default_factory=configs.Settings)
    header: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of a safetensors file."""
    default_activation: Activation | None = None
    """What OpenAI's archives and OpenCLIP's training checkpoints mean when nothing else is said."""
    is_certain: bool = False
    name: str = ""
    """What may name a published family: folder, file, or the name of a training run."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A checkpoint without its weights."""

    config: CLIPConfig
    preprocess: Preprocess
    source: str
    """What was found, in words: the format and where the activation comes from."""
    tokenizer: str | None = None
    """Which one the model was trained with, where the file says so."""
    licence: str = ""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Archives and folders -------------------------------------------------------------------------------------------------


_EMA, _STATE_DICT = "state_dict_ema", "state_dict"


def found_in_archive(path: Path, archive: Archive) -> Found[Any]:
    """The checkpoint in what a zip of torch holds."""
    content = archive.content
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    if archive.is_torchscript:
        return Found(
            tensors=content,
            kind="TorchScript archive",
            default_activation="quick_gelu",
            is_certain=True,
            name=path.name,
        )
    name, kind = path.name, "state dict"
    default: Activation | None = None
    # Averaged weights (EMA) are what a training run is evaluated with.
    wrapper = next((key for key in (_EMA, _STATE_DICT, "model") if isinstance(content.get(key), dict)), None)
    if wrapper:
        kind = "training checkpoint" + (", averaged weights (EMA)" if wrapper == _EMA else "")
        run = content.get("name")
        if isinstance(run, str):  # OpenCLIP writes the name of the run, which has the name of the model in it
            name, default = f"{run} {name}", "gelu"
        content = content[wrapper]
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and hasattr(value, "ndim")}
    is_openai = set(SIZES_IN_ARCHIVES) <= tensors.keys()
    if is_openai:
        default = "quick_gelu"
    return Found(tensors=tensors, kind=kind, default_activation=default, is_certain=is_openai, name=name)


_OPENCLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = tuple(f"{name}.index.json" for name in _TRANSFORMERS_WEIGHTS)


def read_folder(path: Path, read_file: Callable[[Path], Mapping[str, T]]) -> Found[T]:
    """The checkpoint of OpenCLIP or of transformers in a folder, its weights read by ``read_file``."""
    names = {entry.name for entry in path.iterdir()}
    openclip = next((name for name in (*_OPENCLIP_WEIGHTS, *_TRANSFORMERS_WEIGHTS) if name in names), None)
    if "open_clip_config.json" in names and openclip:
        tensors = dict(read_file(path / openclip))
        config = configs.read_json(path / "open_clip_config.json")
        stripped = formats.strip_wrappers(tensors)
        state_dict: Mapping[str, Any] = formats.to_openai(stripped, formats.detect(stripped))
        resolution = CLIPConfig.from_state_dict(state_dict).image_resolution
        settings = configs.read_openclip_config(config, image_resolution=resolution)
        return Found(tensors=tensors, kind="OpenCLIP folder", settings=settings, name=path.resolve().name)
    transformers = next((name for name in (*_TRANSFORMERS_WEIGHTS, *_INDEXES) if name in names), None)
    if "config.json" in names and transformers:
        settings = configs.read_transformers_config(configs.read_json(path / "config.json"))
        if "preprocessor_config.json" in names:
            values = configs.read_json(path / "preprocessor_config.json")
            settings = dataclasses.replace(settings, preprocess=configs.read_transformers_preprocessor(values))
        shards = _shards(path, transformers) if transformers in _INDEXES else [transformers]
        tensors = {}
        for shard in shards:
            tensors |= read_file(path / shard)
        return Found(tensors=tensors, kind="transformers folder", settings=settings, name=path.resolve().name)
    raise CheckpointError(
        f"{path} is a folder without a checkpoint; expected is open_clip_config.json with {_OPENCLIP_WEIGHTS[0]}, or "
        f"config.json with {_TRANSFORMERS_WEIGHTS[0]}; give a single file by its own path"
    )


def _shards(path: Path, index: str) -> list[str]:
    files = configs.read_json(path / index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{path / index} has no weight_map of file names")
    names = sorted(set(files.values()))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{path / index} names a file outside its folder")
    return names


# Meaning --------------------------------------------------------------------------------------------------------------


def describe(
    found: Found[Any], state_dict: Mapping[str, Any], layout: str, activation: Activation | None
) -> Description:
    """What a checkpoint of others is.

    state_dict: its tensors under OpenAI's keys. layout: the names that it had.
    activation: for weights that do not tell; what a file says about itself is not overruled.
    Raises StateDictError, CheckpointError or ConfigError.
    """
    inferred = CLIPConfig.from_state_dict(state_dict)
    chosen, why = _choose_activation(found, layout, inferred, activation)
    config = dataclasses.replace(
        inferred,
        activation=chosen,
        vision_heads=found.settings.vision_heads or inferred.vision_heads,
        transformer_heads=found.settings.transformer_heads or inferred.transformer_heads,
    )
    preprocess = found.settings.preprocess
    if preprocess is None:
        tag = find_tag(found.name)
        preprocess = Preprocess(size=config.image_resolution, **(tag.preprocess if tag else {}))
    if preprocess.size != config.image_resolution:
        raise CheckpointError(
            f"pictures are prepared with {preprocess.size} pixels a side; the model takes {config.image_resolution}"
        )
    where = f"{found.kind} ({layout} names), {chosen} {why}"
    return Description(config=config, preprocess=preprocess, source=where)


def _choose_activation(
    found: Found[Any], layout: str, config: CLIPConfig, activation: Activation | None
) -> tuple[Activation, str]:
    if found.settings.activation:
        said, why = found.settings.activation, "by its configuration"
    elif found.is_certain and found.default_activation:
        said, why = found.default_activation, "as in all of OpenAI's models"
    elif activation is None and (tag := find_tag(found.name)):
        said, why = tag.activation, f"by the name {found.name!r}"
    else:
        said = None
    if said:
        if activation not in (None, said):
            raise CheckpointError(f"activation={activation!r} was asked for, but the model has {said!r} {why}")
        return said, why
    if activation:
        return activation, "as asked for"
    is_laion = config.vision_heads * 64 != config.vision_width and not config.is_resnet
    assumed: Activation = "gelu" if layout == "openclip-custom-text" or is_laion else "quick_gelu"
    assumed = found.default_activation or assumed
    other = "gelu" if assumed == "quick_gelu" else "quick_gelu"
    warnings.warn(
        f"the weights do not tell their activation: {assumed!r} is assumed. OpenAI's models have 'quick_gelu', most of "
        f"OpenCLIP's 'gelu'; a wrong one costs accuracy without an error. Pass activation={assumed!r} or "
        f"activation={other!r}",
        stacklevel=5,
    )
    return assumed, "assumed"


def describe_own(header: Mapping[str, str], state_dict: Mapping[str, Any]) -> Description:
    """What a file in our own format is. Raises StateDictError, CheckpointError or ConfigError."""
    if header.get("version") != VERSION:
        raise CheckpointError(f"format version {header.get('version')!r}; this everyclip reads version {VERSION!r}")
    try:
        config = CLIPConfig.from_dict(json.loads(header["config"]))
        preprocess = Preprocess.from_dict(json.loads(header["preprocess"]))
        training = dict(json.loads(header.get("training", "{}")))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the header is not that of an everyclip file: {type(error).__name__}: {error}"
        ) from error
    inferred = CLIPConfig.from_state_dict(state_dict, activation=config.activation)
    with_heads = dataclasses.replace(
        inferred, vision_heads=config.vision_heads, transformer_heads=config.transformer_heads
    )
    if with_heads != config or preprocess.size != config.image_resolution:
        raise CheckpointError("the header and the shapes of the weights contradict each other")
    return Description(
        config=config,
        preprocess=preprocess,
        source=f"everyclip file, {config.activation} by its header",
        tokenizer=header.get("tokenizer"),
        licence=header.get("licence", ""),
        training=training,
    )
