"""Exported models: the same features as the model's own, whatever the engine, and nothing believed unchecked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip.errors import CheckpointError, ConfigError, MissingDependencyError, ShapeError
from clip.exports.graphs import ImageTower, TextTower, openvino_graph, write_onnx
from clip.inference import exported, openvino_engine
from clip.inference.exported import ExportedCLIP, is_exported
from clip.inference.manifest import MANIFEST, read_manifest
from clip.model import CLIP, CLIPConfig

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

CONFIG = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=16,
    context_length=12,
    vocab_size=40,
    transformer_width=64,
    transformer_layers=2,
)
ENGINES = ("openvino", "onnxruntime")


def _manifest(model: CLIP, engine: str, folder: Path) -> dict[str, Any]:
    return {
        "format": "everyclip-export",
        "version": 1,
        "engine": engine,
        "precision": "fp32",
        "source": "a test",
        "fingerprint": "0123",
        "licence": "",
        "config": model.config.to_dict(),
        "preprocess": {"size": model.config.image_resolution},
        "logit_scale": model.logit_scale.item(),
        "logit_bias": None,
        "tokenizer": None,
        "files": {path.name: path.stat().st_size for path in folder.iterdir()},
    }


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(0)
    return CLIP.from_config(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def written(model: CLIP, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each engine, never to be changed."""
    folders = {engine: tmp_path_factory.mktemp(engine) for engine in ENGINES}
    for tower in (ImageTower(model), TextTower(model)):
        path = folders["openvino"] / f"{tower.name}.xml"
        openvino.save_model(openvino_graph(tower), path, compress_to_fp16=False)
        write_onnx(tower, folders["onnxruntime"] / f"{tower.name}.onnx")
    for engine, folder in folders.items():
        (folder / MANIFEST).write_text(json.dumps(_manifest(model, engine, folder)))
    return folders


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of compiled graphs for each test alone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(params=ENGINES)
def folder(request: pytest.FixtureRequest, written: dict[str, Path]) -> Path:
    return written[request.param]


@pytest.fixture
def openvino_copy(written: dict[str, Path], tmp_path: Path) -> Path:
    """To be changed."""
    return Path(shutil.copytree(written["openvino"], tmp_path / "copy"))


def _images(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32), dtype=np.float32)


def _text(*lengths: int, places: int = 12) -> np.ndarray[Any, Any]:
    text = np.zeros((len(lengths), places), np.int32)
    for row, length in zip(text, lengths, strict=True):
        row[:length] = np.random.default_rng(length).integers(1, 38, length)
        row[length - 1] = 39  # the end token, the largest id
    return text


# The same features ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_have_the_features_of_the_model(folder: Path, model: CLIP, count: int) -> None:
    opened = ExportedCLIP.open(folder, precision="fp32")
    expected = model.encode_image(torch.from_numpy(_images(count))).numpy()
    features = opened.encode_image(_images(count))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("lengths", [(2,), (12,), (3, 9, 4, 12, 3), (7, 7)])
def test_texts_of_every_length_have_the_features_of_the_model(
    folder: Path, model: CLIP, lengths: tuple[int, ...]
) -> None:
    opened = ExportedCLIP.open(folder, precision="fp32")
    text = _text(*lengths)
    expected = model.encode_text(torch.from_numpy(text)).numpy()
    np.testing.assert_allclose(opened.encode_text(text), expected, atol=1e-5)
    np.testing.assert_allclose(opened.encode_text(text[:, : max(lengths)].astype(np.int64)), expected, atol=1e-5)


def test_results_of_one_call_survive_the_next(folder: Path) -> None:
    opened = ExportedCLIP.open(folder, precision="fp32")
    first = opened.encode_image(_images(2))
    kept = first.copy()
    opened.encode_image(-_images(2))
    np.testing.assert_array_equal(first, kept)


def test_images_in_another_order_of_memory_are_the_same(folder: Path) -> None:
    opened = ExportedCLIP.open(folder, precision="fp32")
    turned = np.ascontiguousarray(_images(2).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(opened.encode_image(turned), opened.encode_image(_images(2)))


def test_threads_may_share_a_model(folder: Path) -> None:
    opened = ExportedCLIP.open(folder, precision="fp32")
    found: dict[int, np.ndarray[Any, Any]] = {}

    def encode(count: int) -> None:
        found[count] = opened.encode_image(_images(count))

    threads = [threading.Thread(target=encode, args=(count,)) for count in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for count, features in found.items():
        np.testing.assert_allclose(features, opened.encode_image(_images(count)), atol=1e-6)


def test_empty_batches_are_empty(folder: Path) -> None:
    opened = ExportedCLIP.open(folder)
    assert opened.encode_image(np.empty((0, 3, 32, 32), np.float32)).shape == (0, 16)
    assert opened.encode_text(np.empty((0, 12), np.int32)).shape == (0, 16)


def test_it_says_what_it_is(folder: Path, model: CLIP) -> None:
    opened = ExportedCLIP.open(folder, precision="fp32")
    assert is_exported(folder) and not is_exported(folder.parent)
    assert (opened.engine, opened.precision, opened.config) == (folder.name[:-1], "fp32", model.config)
    assert (opened.context_length, opened.vocab_size, opened.preprocess.size) == (12, 40, 32)
    assert isinstance(opened.logit_scale, np.float32) and opened.logit_scale == np.float32(model.logit_scale.item())
    assert opened.logit_bias is None
    assert opened.manifest.fingerprint == "0123"


@pytest.mark.parametrize(
    ("images", "shape"), [((1, 3, 32, 31), r"\(1, 3, 32, 31\)"), ((3, 32, 32), r"\(batch, 3, 32, 32\)")]
)
def test_images_of_another_shape_are_refused(folder: Path, images: tuple[int, ...], shape: str) -> None:
    with pytest.raises(ShapeError, match=shape):
        ExportedCLIP.open(folder).encode_image(np.zeros(images, np.float32))


@pytest.mark.parametrize("text", [np.zeros((2, 13), int), np.zeros(12, int), np.zeros((2, 0), int), np.zeros((2, 3))])
def test_texts_of_another_shape_are_refused(folder: Path, text: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ShapeError, match="up to 12"):
        ExportedCLIP.open(folder).encode_text(text)


@pytest.mark.parametrize("bad", [-1, 40, 2**40])
def test_ids_that_the_model_has_not_are_refused(folder: Path, bad: int) -> None:
    with pytest.raises(ConfigError, match="0 to 39"):
        ExportedCLIP.open(folder).encode_text(np.array([[1, bad, 3]]))


# What is computed -----------------------------------------------------------------------------------------------------


def _recorded(monkeypatch: pytest.MonkeyPatch, opened: ExportedCLIP) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    graph = opened._text_graph
    monkeypatch.setattr(opened, "_text_graph", lambda batch: (shapes.append(batch.shape), graph(batch))[1])
    return shapes


def test_nothing_behind_the_longest_text_of_a_group_is_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ExportedCLIP.open(folder)
    shapes = _recorded(monkeypatch, opened)
    opened.encode_text(_text(3, 5))
    assert shapes == [(2, 5)]
    shapes.clear()
    opened.encode_text(_text(*[3, 12] * 40))  # 40 calls' worth of padding: a group of each length
    assert shapes == [(40, 3), (40, 12)]


def _cost(groups: list[np.ndarray[Any, Any]], lengths: np.ndarray[Any, Any]) -> int:
    return sum(len(rows) * int(lengths[rows].max()) + exported._TOKENS_OF_A_CALL for rows in groups)


def test_no_other_grouping_costs_less() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        lengths = generator.integers(1, 78, generator.integers(1, 200))
        groups = exported._groups(lengths)
        assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
        order = np.argsort(lengths, kind="stable")
        for parts in range(1, 9):
            assert _cost(groups, lengths) <= _cost(np.array_split(order, min(parts, len(order))), lengths)


def test_a_tower_is_compiled_when_it_is_first_used(written: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = ExportedCLIP.open(written["openvino"])
    compiled: list[str] = []
    original = openvino_engine._Graph._compiled

    def compile_graph(graph: Any) -> Any:
        compiled.append(graph._path.name)
        return original(graph)

    monkeypatch.setattr(openvino_engine._Graph, "_compiled", compile_graph)
    for _ in range(2):
        opened.encode_text(_text(3))
    assert compiled == ["text.xml"]


def test_no_torch_in_the_process(folder: Path) -> None:
    code = f"""
import sys
import numpy as np
from clip.inference.exported import ExportedCLIP
model = ExportedCLIP.open({str(folder)!r})
model.encode_image(np.zeros((1, 3, 32, 32), np.float32)), model.encode_text(np.ones((1, 3), np.int32))
print(sorted({{"torch", "safetensors", "requests"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_engine_tells_anybody_that_it_is_used(folder: Path, home: Path) -> None:
    code = f"""
import os, sys
for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where OpenVINO is silent anyway
    os.environ.pop(name, None)
told = ("socket.connect", "socket.getaddrinfo", "socket.__new__", "subprocess.Popen", "os.fork")
calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event in told else None)
import numpy as np
from clip.inference.exported import ExportedCLIP
ExportedCLIP.open({str(folder)!r}).encode_text(np.ones((1, 3), np.int32))
print(calls)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()} <= {(".cache", "clip")}


def test_the_converter_of_openvino_is_there_for_who_asks(written: dict[str, Path]) -> None:
    code = f"""
import sys
from clip.inference.exported import ExportedCLIP
ExportedCLIP.open({str(written["openvino"])!r})
print("openvino.tools.ovc" in sys.modules)
from clip.inference.telemetry import without_telemetry
with without_telemetry():
    import openvino
    print(openvino.convert_model.__name__, hasattr(openvino, "surprise"))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "convert_model", "False"]


# Precision ------------------------------------------------------------------------------------------------------------


def test_auto_is_bf16_where_the_processor_has_it(written: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def __init__(self, *capabilities: str) -> None:
            self.capabilities = list(capabilities)

        def get_property(self, device: str, name: str) -> Any:
            return self.capabilities if name == "OPTIMIZATION_CAPABILITIES" else "a processor"

    monkeypatch.setattr(openvino_engine, "_core", lambda: Core("FP32", "BF16"))
    assert ExportedCLIP.open(written["openvino"]).precision == "bf16"
    assert ExportedCLIP.open(written["openvino"], precision="fp32").precision == "fp32"
    monkeypatch.setattr(openvino_engine, "_core", lambda: Core("FP32"))
    assert ExportedCLIP.open(written["openvino"]).precision == "fp32"
    with pytest.raises(ConfigError, match="no units for it"):
        ExportedCLIP.open(written["openvino"], precision="bf16")


def test_what_was_asked_for_is_what_runs(written: dict[str, Path]) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no units for bf16")
    features = {}
    for precision, hint in {"fp32": "f32", "bf16": "bf16"}.items():
        opened = ExportedCLIP.open(written["openvino"], precision=precision)
        features[precision] = opened.encode_image(_images(3))
        request: Any = opened._image_graph
        used = request._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        assert used.get_type_name() == hint
    assert 1e-4 < np.abs(features["fp32"] - features["bf16"]).max() < 0.1  # after both lay in one cache


@pytest.mark.parametrize(
    ("stored", "asked", "remedy"),
    [("fp32", "int8", "export it with --int8"), ("int8", "bf16", "without --int8"), ("int8", "fp32", "without --int8")],
)
def test_a_precision_that_the_folder_has_not_is_refused(
    openvino_copy: Path, stored: str, asked: str, remedy: str
) -> None:
    _change(openvino_copy, "precision", stored)
    with pytest.raises(ConfigError, match=remedy):
        ExportedCLIP.open(openvino_copy, precision=asked)
    assert ExportedCLIP.open(openvino_copy).precision in ("int8", "bf16", "fp32")


def test_other_precisions_are_refused(written: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        ExportedCLIP.open(written["openvino"], precision="fp64")
    with pytest.raises(ConfigError, match="ONNX Runtime has none"):
        ExportedCLIP.open(written["onnxruntime"], precision="bf16")
    assert ExportedCLIP.open(written["onnxruntime"]).precision == "fp32"


@pytest.mark.parametrize(("engine", "extra"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_a_missing_library_is_named_with_its_extra(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch, engine: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    openvino_engine._core.cache_clear()
    with pytest.raises(MissingDependencyError, match=rf"everyclip\[{extra}\]"):
        ExportedCLIP.open(written[engine])


# The cache of compiled graphs -----------------------------------------------------------------------------------------


def _blobs(home: Path) -> list[Path]:
    return sorted(home.rglob("*.blob"))


def test_compiled_graphs_are_kept_without_the_weights(written: dict[str, Path], home: Path) -> None:
    features = ExportedCLIP.open(written["openvino"]).encode_image(_images(2))
    (blob,) = _blobs(home)
    kept = blob.stat().st_mtime_ns
    again = ExportedCLIP.open(written["openvino"]).encode_image(_images(2))
    np.testing.assert_array_equal(again, features)
    assert [path.stat().st_mtime_ns for path in _blobs(home)] == [kept]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: bytes(len(data))]
)
def test_a_broken_cache_is_no_obstacle(written: dict[str, Path], home: Path, damage: Callable[[bytes], bytes]) -> None:
    features = ExportedCLIP.open(written["openvino"]).encode_image(_images(2))
    (blob,) = _blobs(home)
    data = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(damage(data))
    np.testing.assert_array_equal(ExportedCLIP.open(written["openvino"]).encode_image(_images(2)), features)


def test_a_cache_that_cannot_be_written_is_no_obstacle(written: dict[str, Path], home: Path) -> None:
    home.mkdir()
    (home / ".cache").write_text("a file in the place of the folder")
    assert ExportedCLIP.open(written["openvino"]).encode_image(_images(2)).shape == (2, 16)


def test_a_changed_folder_is_compiled_anew(openvino_copy: Path, model: CLIP, home: Path) -> None:
    before = ExportedCLIP.open(openvino_copy, precision="fp32").encode_image(_images(2))
    weights = bytearray((openvino_copy / "image.bin").read_bytes())
    last = np.frombuffer(weights, np.float32, 64 * 16, len(weights) - 4 * 64 * 16)  # the projection
    last *= 0.5  # the same size, the same graph, under the same path
    (openvino_copy / "image.bin").unlink()
    (openvino_copy / "image.bin").write_bytes(weights)
    after = ExportedCLIP.open(openvino_copy, precision="fp32").encode_image(_images(2))
    assert np.abs(before - after).max() > 0.01
    assert len(_blobs(home)) == 1  # that of the earlier state is removed


def test_graphs_of_folders_that_are_gone_are_removed(openvino_copy: Path, written: dict[str, Path], home: Path) -> None:
    ExportedCLIP.open(openvino_copy).encode_text(_text(3))
    (gone,) = _blobs(home)
    shutil.rmtree(openvino_copy)
    ExportedCLIP.open(written["openvino"]).encode_text(_text(3))
    assert len(_blobs(home)) == 1 and not gone.exists()


def test_two_processes_may_open_a_folder_at_once(written: dict[str, Path]) -> None:
    code = f"""
import numpy as np
from clip.inference.exported import ExportedCLIP
print(ExportedCLIP.open({str(written["openvino"])!r}, precision="fp32").encode_text(np.ones((1, 3), np.int32))[0, 0])
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate()[0] for process in processes}
    assert len(outputs) == 1 and outputs != {""}


# Folders from anybody -------------------------------------------------------------------------------------------------


def _change(folder: Path, *path_and_value: Any) -> None:
    """Sets one value of clip.json; ``...`` removes it."""
    *path, last, value = path_and_value
    manifest = json.loads((folder / MANIFEST).read_text())
    place = manifest
    for key in path:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("format", "other"), "has not written it"),
        (("format", ...), "has not written it"),
        (("version", 2), "version is 2.*update everyclip"),
        (("version", True), "version is True"),
        (("engine", "tensorflow"), "engine is 'tensorflow'.*openvino"),
        (("engine", []), "engine is"),
        (("engine", "onnxruntime"), "image.onnx is not among its files"),
        (("precision", "fp16"), "precision is 'fp16'"),
        (("config", 3), "config is 3"),
        (("config", "embed_dim", "16"), "embed_dim is '16'"),
        (("config", "vision_layers", ["2"]), "vision_layers"),
        (("config", "depth", 3), "unknown configuration keys"),
        (("config", "embed_dim", ...), "are missing"),
        (("config", "image_resolution", 48), "32 pixels wide, and the model takes 48"),
        (("preprocess", "size", 0), "size is 0"),
        (("preprocess", "std", [0, 1, 1]), "std is"),
        (("preprocess", None), "preprocess is None"),
        (("logit_scale", None), "logit_scale is None"),
        (("logit_scale", float("nan")), "logit_scale is nan"),
        (("logit_scale", 10**400), "logit_scale is 1000"),
        (("preprocess", "mean", [10**400, 0, 0]), "too large"),
        (("logit_scale", ...), r"\['logit_scale'\] are missing"),
        (("logit_bias", 1.5), "the configuration says False"),
        (("files", ["image.xml"]), "files is"),
        (("files", "image.xml", ...), "image.xml is not among its files"),
        (("files", "image.bin", 3), "3 bytes are expected"),
        (("files", "image.bin", -1), "files is"),
        (("files", "../../etc/passwd", 3), "not the name of a file beside it"),
        (("files", "a/../image.xml", 3), "not the name of a file beside it"),
        (("files", "..", 3), "not the name of a file beside it"),
        (("files", "a\0b", 3), "files is"),
        (("source", 3), "source is 3"),
        (("tokenizer", "x" * 1000), "tokenizer is 'x+…"),
        (("surprise", 1), "unknown keys.*surprise"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_manifest_is_read_strictly(openvino_copy: Path, change: tuple[Any, ...], message: str) -> None:
    _change(openvino_copy, *change)
    with pytest.raises(CheckpointError, match=message):
        ExportedCLIP.open(openvino_copy)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b"null", b'{"version": 1}'])
def test_what_is_no_manifest_is_refused(openvino_copy: Path, data: bytes) -> None:
    (openvino_copy / MANIFEST).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"clip\.json: it "):
        ExportedCLIP.open(openvino_copy)


def test_no_manifest_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["image.bin", "text.xml"])
def test_a_missing_file_is_named(openvino_copy: Path, name: str) -> None:
    (openvino_copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        ExportedCLIP.open(openvino_copy)


def test_a_graph_of_other_sizes_than_the_manifest_says_is_refused(openvino_copy: Path) -> None:
    _change(openvino_copy, "config", "embed_dim", 8)
    opened = ExportedCLIP.open(openvino_copy)
    with pytest.raises(CheckpointError, match=r"give float32 \(\?, 8\)"):
        opened.encode_image(_images(1))
    with pytest.raises(CheckpointError, match=r"gives float32 \(\?, 16\)"):
        opened.encode_text(_text(3))


def test_exchanged_towers_are_refused(openvino_copy: Path) -> None:
    for suffix in (".xml", ".bin"):
        (openvino_copy / f"image{suffix}").replace(openvino_copy / f"old{suffix}")
        (openvino_copy / f"text{suffix}").replace(openvino_copy / f"image{suffix}")
    manifest = json.loads((openvino_copy / MANIFEST).read_text())
    for suffix in (".xml", ".bin"):
        manifest["files"][f"image{suffix}"] = (openvino_copy / f"image{suffix}").stat().st_size
        (openvino_copy / f"old{suffix}").replace(openvino_copy / f"text{suffix}")
        manifest["files"][f"text{suffix}"] = (openvino_copy / f"text{suffix}").stat().st_size
    (openvino_copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"takes int32 \(\?, \?\)"):
        ExportedCLIP.open(openvino_copy).encode_image(_images(1))


def test_a_graph_that_gives_other_rows_is_refused(openvino_copy: Path) -> None:
    from openvino import opset13 as ops

    image = ops.parameter([-1, 3, 32, 32], np.float32)
    means = ops.reduce_mean(image, np.array([2, 3]))  # (B, 3)
    rows = ops.concat([means, means], 0)  # (2 B, 3)
    openvino.save_model(openvino.Model([rows], [image]), openvino_copy / "image.xml")
    for name in ("image.xml", "image.bin"):
        _change(openvino_copy, "files", name, (openvino_copy / name).stat().st_size)
    _change(openvino_copy, "config", "embed_dim", 3)
    with pytest.raises(CheckpointError, match=r"gives \(4, 3\) instead of \(2, 3\)"):
        ExportedCLIP.open(openvino_copy).encode_image(_images(2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<net", "<nut"),
        ('type="MatMul"', 'type="Surprise"'),
        ('type="MatMul"', 'type="Add"'),
        ('offset="0"', 'offset="99999999999"'),
        ('shape="16, 64"', 'shape="16000000, 64"'),
        ('shape="16, 64"', 'shape="-16, 64"'),
        ("</layers>", ""),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_hostile_graph_is_refused(openvino_copy: Path, old: str, new: str) -> None:
    path = openvino_copy / "image.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    _change(openvino_copy, "files", "image.xml", path.stat().st_size)
    with pytest.raises(CheckpointError, match=r"image\.xml"):
        ExportedCLIP.open(openvino_copy).encode_image(_images(2))


def _with_outside_weights(location: str) -> bytes:
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "64"}.items():
        weight.external_data.add(key=key, value=value)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["B", 3, 32, 32]), ("image_features", ["B", 16]))
    ]
    mean = helper.make_node("ReduceMean", ["image"], ["m"], axes=[2, 3], keepdims=0)
    first = helper.make_node("Slice", ["m", "zero", "one", "axis"], ["s"])
    numbers = [
        helper.make_tensor(name, TensorProto.INT64, [1], [int(name != "zero")]) for name in ("zero", "one", "axis")
    ]
    total = helper.make_node("Add", ["s", "w"], ["image_features"])
    graph = helper.make_graph([mean, first, total], "graph", ports[:1], ports[1:], [weight, *numbers])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("location", "is_read"), [("beside.bin", True), ("../beside.bin", False), ("/etc/passwd", False)]
)
def test_onnx_weights_outside_the_folder_are_not_read(
    written: dict[str, Path], tmp_path: Path, location: str, is_read: bool
) -> None:
    folder = Path(shutil.copytree(written["onnxruntime"], tmp_path / "copy"))
    (tmp_path / "beside.bin").write_bytes(bytes(64))
    (folder / "beside.bin").write_bytes(bytes(64))
    (folder / "image.onnx").write_bytes(_with_outside_weights(location))
    _change(folder, "files", "image.onnx", (folder / "image.onnx").stat().st_size)
    opened = ExportedCLIP.open(folder)
    if is_read:
        assert opened.encode_image(_images(2)).shape == (2, 16)
        return
    with pytest.raises(CheckpointError, match=r"ONNX Runtime cannot run it.*xternal data"):
        opened.encode_image(_images(2))
