"""Both towers in both engines give what the model gives, whatever the batch and the length of the texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clip.errors import MissingDependencyError
from clip.exports.graphs import ImageTower, TextTower, imported, openvino_graph, write_onnx
from clip.model import CLIP, CLIPConfig

Run = Callable[[NDArray[Any]], NDArray[np.float32]]

VIT = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=2,
    vision_width=32,
    vision_heads=2,
    vision_patch_size=16,
    context_length=16,
    vocab_size=64,
    transformer_width=32,
    transformer_heads=2,
    transformer_layers=2,
)
RESNET_WITH_GELU = dataclasses.replace(
    VIT, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=8, vision_patch_size=None, activation="gelu"
)
END = 63


def _model(config: CLIPConfig) -> CLIP:
    torch.manual_seed(0)
    model = CLIP.from_config(config).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # the blocks of a fresh ResNet give nothing but their shortcut
            torch.nn.init.normal_(module.weight, 2.0, 0.5)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
    return model


def _openvino(tower: ImageTower | TextTower, folder: Path) -> Run:
    import openvino

    openvino.save_model(openvino_graph(tower), folder / "tower.xml", compress_to_fp16=False)
    core = openvino.Core()
    graph = core.read_model(folder / "tower.xml")
    assert (graph.input(0).any_name, graph.output(0).any_name) == (tower.name, f"{tower.name}_features")
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: np.array(compiled(batch)[0])


def _onnx(tower: ImageTower | TextTower, folder: Path) -> Run:
    import onnxruntime

    write_onnx(tower, folder / "tower.onnx")
    assert [path.name for path in folder.iterdir()] == ["tower.onnx"]  # small weights need no second file
    session = onnxruntime.InferenceSession(folder / "tower.onnx", providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, made.name) == (tower.name, f"{tower.name}_features")
    assert given.shape[0] == made.shape[0] == "batch"
    return lambda batch: np.asarray(session.run(None, {tower.name: batch})[0])


@pytest.mark.parametrize("engine", [_openvino, _onnx])
@pytest.mark.parametrize("config", [VIT, RESNET_WITH_GELU], ids=["vit", "resnet with gelu"])
def test_images_of_any_batch(config: CLIPConfig, engine: Callable[..., Run], tmp_path: Path) -> None:
    model = _model(config)
    run = engine(ImageTower(model), tmp_path)
    images = torch.randn(3, 3, config.image_resolution, config.image_resolution)
    expected = model.encode_image(images).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 0.01  # there is something to tell apart
    for count in (1, 3):
        np.testing.assert_allclose(run(images[:count].numpy()), expected[:count], atol=2e-5)


@pytest.mark.parametrize("engine", [_openvino, _onnx])
@pytest.mark.parametrize("config", [VIT, RESNET_WITH_GELU], ids=["quick_gelu", "gelu"])
def test_texts_of_any_length_end_at_their_largest_id(
    config: CLIPConfig, engine: Callable[..., Run], tmp_path: Path
) -> None:
    model = _model(config)
    run = engine(TextTower(model), tmp_path)
    text = torch.randint(1, END, (3, config.context_length), dtype=torch.int32)
    for row, end in enumerate((4, 7, 2)):
        text[row, end] = END  # what follows is noise that must not count
    expected = model.encode_text(text).numpy()
    for count, lengths in ((1, (5, 6, 16)), (3, (8, 9, 15, 16))):
        for length in lengths:
            features = run(text[:count, :length].numpy())
            np.testing.assert_allclose(features, expected[:count], atol=2e-5, err_msg=f"{count} × {length}")


def test_a_missing_library_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"nonsense_engine.*pip install 'everyclip\[export\]'"):
        imported("nonsense_engine")
