"""Reading and writing whole checkpoints: detection, activation, round trips, refusals."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clip
from clip.checkpoints import files
from clip.checkpoints.files import Checkpoint, Format, fingerprint, read_checkpoint, read_licence, write_checkpoint
from clip.errors import CheckpointError, ConversionError, StateDictError
from clip.model import CLIP, CLIPConfig, convert_weights
from clip.preprocess import Preprocess

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoints"


def _checkpoint(model: CLIP, **more: Any) -> Checkpoint:
    weights = {key: value.detach() for key, value in model.state_dict().items()}
    preprocess = Preprocess(size=model.config.image_resolution)
    return Checkpoint(**{"config": model.config, "state_dict": weights, "preprocess": preprocess, "source": ""} | more)


def _assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype, key
        assert torch.equal(one[key], other[key]), key


# OpenAI's archives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai_tiny", "openai_tiny_rn"])
def test_openai_archive_gives_openai_features(name: str) -> None:
    model, preprocess = clip.load(GOLDEN / f"{name}.pt", device="cpu")
    expected = np.load(GOLDEN / "expected.npz")
    image, text = (torch.from_numpy(expected[f"{name}.pt/{part}"]) for part in ("images", "texts"))
    with torch.inference_mode():
        features = model.encode_image(image), model.encode_text(text)
    for part, value in zip(("image_features", "text_features"), features, strict=True):
        reference = torch.from_numpy(expected[f"{name}.pt/{part}"])
        reference, value = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (reference, value))
        assert (reference - value).abs().max() <= 2e-6
    assert preprocess == Preprocess(size=model.visual.input_resolution)


def test_openai_archive_is_recognised_without_a_warning_and_without_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch.jit and torch.load must not be called")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    checkpoint = read_checkpoint(GOLDEN / "openai_tiny.pt")
    assert checkpoint.source == "TorchScript archive (openai names), quick_gelu as in all of OpenAI's models"
    assert not {"input_resolution", "context_length", "vocab_size"} & checkpoint.state_dict.keys()
    assert checkpoint.state_dict["visual.conv1.weight"].dtype == torch.float16


# Round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["everyclip", "openai", "openclip", "transformers"])
@pytest.mark.parametrize("half", [False, True])
def test_round_trips_are_bit_equal(tmp_path: Path, tiny_vit: CLIP, to: Format, half: bool) -> None:
    if half:
        convert_weights(tiny_vit)
    checkpoint = _checkpoint(tiny_vit, licence="CC0" if to == "everyclip" else "")
    write_checkpoint(checkpoint, tmp_path / "there", to)
    again = read_checkpoint(tmp_path / "there")
    _assert_equal(again.state_dict, checkpoint.state_dict)
    assert dataclasses.replace(again, state_dict={}, source="") == dataclasses.replace(checkpoint, state_dict={})
    write_checkpoint(again, tmp_path / "back", "everyclip")
    _assert_equal(read_checkpoint(tmp_path / "back").state_dict, checkpoint.state_dict)


@pytest.mark.parametrize("to", ["everyclip", "openai", "openclip"])
def test_resnets_round_trip(tmp_path: Path, tiny_resnet: CLIP, to: Format) -> None:
    write_checkpoint(_checkpoint(tiny_resnet), tmp_path / "there", to)
    again = read_checkpoint(tmp_path / "there")
    _assert_equal(again.state_dict, _checkpoint(tiny_resnet).state_dict)
    assert again.config == tiny_resnet.config


def _laion() -> CLIP:
    """The features of LAION's sizes in small: GELU, heads of 80, an MLP that is no multiple of the width."""
    return CLIP(16, 32, 1, 160, 16, 77, 49408, 64, 1, 1, vision_heads=2, vision_mlp_width=787, activation="gelu").eval()


@pytest.mark.parametrize("to", ["everyclip", "openclip", "transformers"])
def test_laion_sizes_and_other_preprocessing_round_trip(tmp_path: Path, to: Format) -> None:
    preprocess = Preprocess(
        size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash", interpolation="bilinear"
    )
    checkpoint = _checkpoint(_laion(), preprocess=preprocess)
    write_checkpoint(checkpoint, tmp_path / "there", to)
    again = read_checkpoint(tmp_path / "there")
    assert again.config == checkpoint.config
    assert again.preprocess == preprocess
    _assert_equal(again.state_dict, checkpoint.state_dict)


@pytest.mark.parametrize("to", ["everyclip", "openclip"])
def test_logit_bias_round_trips(tmp_path: Path, tiny_vit: CLIP, to: Format) -> None:
    model = CLIP.from_config(dataclasses.replace(tiny_vit.config, logit_bias=True)).eval()
    write_checkpoint(_checkpoint(model), tmp_path / "there", to)
    again = read_checkpoint(tmp_path / "there")
    assert again.config == model.config
    _assert_equal(again.state_dict, _checkpoint(model).state_dict)
    if to == "openclip":
        config = json.loads((tmp_path / "there" / "open_clip_config.json").read_text())
        assert config["model_cfg"]["init_logit_bias"] == -10


@pytest.mark.parametrize(("to", "reason"), [("openai", "logit_bias True"), ("transformers", "no place for logit_bias")])
def test_logit_bias_is_not_dropped_in_silence(tmp_path: Path, tiny_vit: CLIP, to: Format, reason: str) -> None:
    model = CLIP.from_config(dataclasses.replace(tiny_vit.config, logit_bias=True)).eval()
    with pytest.raises(ConversionError, match=reason):
        write_checkpoint(_checkpoint(model), tmp_path / "there", to)
    assert not (tmp_path / "there").exists()


def test_convert_and_save_at_the_public_face(tmp_path: Path, tiny_vit: CLIP) -> None:
    clip.save(tiny_vit, tmp_path / "a.safetensors", Preprocess(size=32, resize="squash"), licence="MIT")
    checkpoint = clip.convert(tmp_path / "a.safetensors", tmp_path / "folder", "openclip")
    assert (checkpoint.licence, checkpoint.preprocess.resize) == ("MIT", "squash")
    model, preprocess = clip.load(tmp_path / "folder")
    assert preprocess == checkpoint.preprocess
    _assert_equal(dict(model.state_dict()), dict(tiny_vit.state_dict()))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


# What a format cannot hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "to", "name"),
    [
        (lambda: _checkpoint(_laion()), "openai", "vision_heads|vision_mlp_width|activation"),
        (
            lambda: _checkpoint(CLIP(16, 32, 1, 64, 16, 77, 64, 64, 1, 1, activation="gelu")),
            "openai",
            "activation 'gelu'",
        ),
        (lambda: _checkpoint(CLIP(16, 32, 1, 64, 16, 77, 64, 64, 2, 1)), "openai", "transformer_heads 2"),
        (
            lambda: _checkpoint(
                CLIP(16, 32, 1, 64, 16, 77, 64, 64, 1, 1), preprocess=Preprocess(size=32, resize="squash")
            ),
            "openai",
            "squash",
        ),
        (lambda: _checkpoint(CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 64, 64, 1, 1)), "transformers", "no ResNet"),
        (
            lambda: _checkpoint(CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 64, 64, 1, 1, vision_heads=2)),
            "openclip",
            "not 2 heads",
        ),
        (
            lambda: _checkpoint(
                CLIP(16, 32, 1, 64, 16, 77, 64, 64, 1, 1), preprocess=Preprocess(size=32, resize="longest")
            ),
            "transformers",
            "longest",
        ),
        (lambda: _checkpoint(CLIP(16, 32, 1, 64, 16, 77, 64, 64, 1, 1)), "onnx", "'onnx' is not known; known are"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(
    tmp_path: Path, make: Callable[[], Checkpoint], to: Format, name: str
) -> None:
    with pytest.raises(ConversionError, match=name):
        write_checkpoint(make(), tmp_path / "file", to)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    tmp_path: Path, tiny_vit: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match="exists; remove it or choose another name"):
        write_checkpoint(_checkpoint(tiny_vit), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_save_safetensors", full)
    for to in ("everyclip", "openclip", "transformers"):
        with pytest.raises(CheckpointError, match="No space left"):
            write_checkpoint(_checkpoint(tiny_vit), tmp_path / to, to)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_weights_that_do_not_fit_are_not_written(tmp_path: Path, tiny_vit: CLIP) -> None:
    checkpoint = _checkpoint(tiny_vit)
    del checkpoint.state_dict["logit_scale"]
    with pytest.raises(StateDictError, match="missing: logit_scale"):
        write_checkpoint(checkpoint, tmp_path / "file")


# Wrappers, layouts and activation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, tiny_vit: CLIP, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in tiny_vit.state_dict().items()}, tmp_path / "file.pt")
    checkpoint = read_checkpoint(tmp_path / "file.pt", activation="quick_gelu")
    _assert_equal(checkpoint.state_dict, _checkpoint(tiny_vit).state_dict)


def test_training_checkpoints_give_the_averaged_weights(tmp_path: Path, tiny_vit: CLIP) -> None:
    raw = dict(tiny_vit.state_dict())
    averaged = {key: value * 0.5 if value.is_floating_point() else value for key, value in raw.items()}
    content = {"epoch": 3, "name": "model_ViT-B-32-lr_1", "state_dict": raw, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "plain.pt")
    torch.save(content | {"state_dict_ema": averaged}, tmp_path / "ema.pt")
    _assert_equal(read_checkpoint(tmp_path / "plain.pt", activation="gelu").state_dict, raw)
    checkpoint = read_checkpoint(tmp_path / "ema.pt", activation="gelu")
    _assert_equal(checkpoint.state_dict, averaged)
    assert "averaged weights (EMA)" in checkpoint.source


def test_custom_text_layout_of_openclip(tmp_path: Path, tiny_vit: CLIP) -> None:
    text = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    foreign = {f"text.{k}" if k.startswith(text) else k: v for k, v in tiny_vit.state_dict().items()}
    foreign["logit_scale"] = foreign["logit_scale"].reshape(1)
    torch.save({"state_dict": foreign}, tmp_path / "file.pt")
    model = read_checkpoint(tmp_path / "file.pt", activation="gelu").build()
    assert model.logit_scale.shape == ()
    assert torch.equal(model.text_projection, tiny_vit.text_projection)


def test_old_files_of_transformers_and_causal_masks_are_read(tmp_path: Path, tiny_vit: CLIP) -> None:
    write_checkpoint(_checkpoint(tiny_vit), tmp_path / "hf", "transformers")
    found = files._read_file(tmp_path / "hf" / "model.safetensors").tensors
    found["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(found, tmp_path / "hf" / "pytorch_model.bin")
    (tmp_path / "hf" / "model.safetensors").unlink()
    _assert_equal(read_checkpoint(tmp_path / "hf").state_dict, _checkpoint(tiny_vit).state_dict)
    torch.save({**tiny_vit.state_dict(), "attn_mask": torch.ones(1)}, tmp_path / "masked.pt")
    read_checkpoint(tmp_path / "masked.pt", activation="gelu").build()


def test_sharded_folder_of_transformers(tmp_path: Path, tiny_vit: CLIP) -> None:
    folder = tmp_path / "hf"
    write_checkpoint(_checkpoint(tiny_vit), folder, "transformers")
    tensors = files._read_file(folder / "model.safetensors").tensors
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        torch.save({name: tensors[name] for name in part}, folder / f"part{i}.bin")
        index |= dict.fromkeys(part, f"part{i}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    _assert_equal(read_checkpoint(folder).state_dict, _checkpoint(tiny_vit).state_dict)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_checkpoint(folder)


def test_unknown_activation_is_said_loudly_and_can_be_given(tmp_path: Path, tiny_vit: CLIP) -> None:
    torch.save(tiny_vit.state_dict(), tmp_path / "mine.pt")
    with pytest.warns(UserWarning, match=r"'quick_gelu' is assumed.*activation='gelu'"):
        assert read_checkpoint(tmp_path / "mine.pt").config.activation == "quick_gelu"
    for activation in ("gelu", "quick_gelu"):
        assert read_checkpoint(tmp_path / "mine.pt", activation=activation).config.activation == activation


def test_what_a_file_says_is_not_overruled(tmp_path: Path, tiny_vit: CLIP) -> None:
    for to in ("openai", "openclip"):
        write_checkpoint(_checkpoint(tiny_vit), tmp_path / to, to)
        with pytest.raises(CheckpointError, match="activation='gelu' was asked for, but the model has 'quick_gelu'"):
            read_checkpoint(tmp_path / to, activation="gelu")


@pytest.mark.parametrize(
    ("name", "activation", "std"),
    [
        ("vit_b_32-quickgelu-laion400m_e31-d867053b.pt", "quick_gelu", 0.26862954),
        ("vit_b_16-laion400m_e31-00efa78f.pt", "gelu", 0.26862954),
        ("CLIP-ViT-L-14-laion2B-s32B-b82K.bin", "gelu", 0.5),
        ("vit_b_32-laion2b_e16-af8dbd0c.pth", "gelu", 0.26862954),
        ("CLIP-ViT-B-32-DataComp.XL-s13B-b90K.pt", "gelu", 0.26862954),
        ("rn50-quickgelu-yfcc15m-455df137.pt", "quick_gelu", 0.26862954),
        ("b32_400m.pt", "quick_gelu", 0.26862954),
        ("h14_v1.2_altogether.pt", "gelu", 0.26862954),
        ("DFN2B-CLIP-ViT-L-14.pt", "quick_gelu", 0.26862954),
        ("DFN2B-CLIP-ViT-L-14-39B.pt", "gelu", 0.26862954),
    ],
)
def test_names_of_published_families_decide(
    tmp_path: Path, tiny_vit: CLIP, name: str, activation: str, std: float
) -> None:
    torch.save(tiny_vit.state_dict(), tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.config.activation == activation
    assert checkpoint.preprocess.std[0] == std


# Our own format -----------------------------------------------------------------------------------------------------


def test_int8_rows_are_close_and_everything_else_equal(tmp_path: Path, tiny_vit: CLIP) -> None:
    table = "token_embedding.weight"
    path = tmp_path / "small.safetensors"
    write_checkpoint(_checkpoint(tiny_vit), path, int8_rows=(table,))
    read, own = read_checkpoint(path).state_dict, dict(tiny_vit.state_dict())
    step = own[table].abs().amax(dim=1, keepdim=True) / 127
    assert ((read.pop(table) - own.pop(table)).abs() <= step * 0.501).all()
    _assert_equal(read, own)
    assert path.stat().st_size < 0.5 * sum(4 * value.numel() for value in tiny_vit.state_dict().values())


def test_fingerprints_tell_models_apart(tiny_vit: CLIP) -> None:
    weights = dict(tiny_vit.state_dict())
    one = fingerprint(tiny_vit.config, weights)
    assert one == fingerprint(tiny_vit.config, dict(reversed(weights.items())))
    assert one != fingerprint(dataclasses.replace(tiny_vit.config, activation="gelu"), weights)
    changed = weights["ln_final.bias"].clone()
    changed[3] += 1e-6
    assert one != fingerprint(tiny_vit.config, weights | {"ln_final.bias": changed})


def _rewrite_header(path: Path, change: Callable[[dict[str, str]], None]) -> None:
    from safetensors.torch import save_file

    tensors, header = files._read_safetensors(path)
    copies = {key: value.clone() for key, value in tensors.items()}
    change(header)
    save_file(copies, path, header)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: h.update(version="2"), "version '2'; this everyclip reads version '1'"),
        (lambda h: h.pop("config"), "KeyError"),
        (lambda h: h.update(config="[1"), "not that of an everyclip file"),
        (lambda h: h.update(config="[" * 100_000), "not that of an everyclip file"),
        (lambda h: h.update(config=h["config"].replace('"embed_dim": 16', '"embed_dim": 32')), "contradict each other"),
        (
            lambda h: h.update(
                config=h["config"].replace('"transformer_layers": 2', '"transformer_layers": 1000000000')
            ),
            "contra",
        ),
        (lambda h: h.update(config=h["config"].replace("{", '{"extra": 1, ', 1)), "unknown configuration keys"),
        (lambda h: h.update(config=h["config"].replace("quick_gelu", "relu")), "activation is 'relu'"),
        (lambda h: h.update(preprocess=h["preprocess"].replace('"size": 32', '"size": 64')), "contradict each other"),
        (lambda h: h.update(training="{"), "not that of an everyclip file"),
        (lambda h: h.update(training="17"), "not that of an everyclip file"),
    ],
)
def test_headers_that_lie_are_refused(
    tmp_path: Path, tiny_vit: CLIP, change: Callable[[dict[str, str]], None], reason: str
) -> None:
    path = tmp_path / "file.safetensors"
    write_checkpoint(_checkpoint(tiny_vit), path)
    _rewrite_header(path, change)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(path)


def test_how_it_was_trained_is_kept(tmp_path: Path, tiny_vit: CLIP) -> None:
    training = {"steps": 30, "data": ["Wörter.csv"], "augmentation": {"crop_scale": [0.9, 1.0]}}
    path = tmp_path / "trained.safetensors"
    write_checkpoint(_checkpoint(tiny_vit, training=training), path)
    assert read_checkpoint(path).training == training
    clip.convert(path, tmp_path / "again.safetensors", "everyclip")
    assert read_checkpoint(tmp_path / "again.safetensors").training == training
    _rewrite_header(path, lambda header: header.update(entry_of_a_later_version="x"))
    assert read_checkpoint(path).training == training
    _rewrite_header(path, lambda header: header.pop("training"))  # as files were before
    assert read_checkpoint(path).training == {}


def test_licences_are_read_without_the_weights(tmp_path: Path, tiny_vit: CLIP) -> None:
    write_checkpoint(_checkpoint(tiny_vit, licence="CC BY 4.0"), tmp_path / "own")
    write_checkpoint(_checkpoint(tiny_vit), tmp_path / "other", "openclip")
    (tmp_path / "text").write_text("no checkpoint")
    assert read_licence(tmp_path / "own") == "CC BY 4.0"
    for path in ("other", "other/open_clip_model.safetensors", "text", "missing"):
        assert read_licence(tmp_path / path) == ""


# Damaged and foreign files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, tiny_vit: CLIP, value: float) -> None:
    tiny_vit.visual.proj.data[1, 2] = value  # type: ignore[union-attr]
    torch.save(tiny_vit.state_dict(), tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"visual\.proj has 1 values that are not finite"):
        read_checkpoint(tmp_path / "file.pt", activation="gelu")


def test_large_half_precision_weights_are_not_mistaken_for_infinite(tmp_path: Path, tiny_vit: CLIP) -> None:
    weights = {
        key: value.half() if value.is_floating_point() else value for key, value in tiny_vit.state_dict().items()
    }
    weights["token_embedding.weight"] = torch.full_like(weights["token_embedding.weight"], 60000)
    torch.save(weights, tmp_path / "file.pt")
    read_checkpoint(tmp_path / "file.pt", activation="gelu")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("visual.conv1.weight", torch.zeros(3), "4 dimensions expected"),
        ("visual.positional_embedding", torch.zeros(7, 64), "mis-shaped|contradict|do not make"),
        ("text_projection", torch.zeros(64, 64, dtype=torch.int64), "int64"),
        ("ln_final.weight", torch.zeros(63), "mis-shaped|divide"),
        ("surprise", torch.zeros(1), "unexpected: surprise"),
        ("logit_bias", torch.zeros(2), "mis-shaped: logit_bias"),
    ],
)
def test_wrong_shapes_are_refused(tmp_path: Path, tiny_vit: CLIP, key: str, value: torch.Tensor, reason: str) -> None:
    torch.save({**tiny_vit.state_dict(), key: value}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "file.pt", activation="gelu").build()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no checkpoint"),
        (b"hello", "no checkpoint"),
        (b"\x80\x02}q\x00.", "before torch 1.6"),
        (b"PK\x03\x04" + bytes(100), "not a readable zip"),
        (b"\x10\0\0\0\0\0\0\0{not json at all", "not a valid safetensors"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "not a valid safetensors"),
        (b"<html>404</html>", "no checkpoint"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "file")


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), {"a": 1}, {"state_dict": {}}, {"w": torch.ones(2)}]
)
def test_other_contents_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="state dict"):
        read_checkpoint(tmp_path / "file.pt")


def test_folders_without_a_checkpoint_and_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder without a checkpoint; expected is"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        read_checkpoint(tmp_path / "missing")


def test_header_of_our_own_can_be_read_by_others(tmp_path: Path, tiny_vit: CLIP) -> None:
    write_checkpoint(_checkpoint(tiny_vit, licence="MIT"), tmp_path / "file.safetensors")
    _, header = files._read_safetensors(tmp_path / "file.safetensors")
    assert header["format"] == "everyclip"
    assert header["licence"] == "MIT"
    assert header["fingerprint"] == fingerprint(tiny_vit.config, tiny_vit.state_dict())
    assert CLIPConfig.from_dict(json.loads(header["config"])) == tiny_vit.config
