"""What a process imports for its answer: no torch for an exported model, and nothing needless with torch."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip.samples
import clip.search
from clip.config import CLIPConfig
from clip.inference.manifest import ENGINES
from clip.preprocess import Preprocess
from clip.search.index import Index
from clip.search.indexing import update_folders

TORCH_FREE = (
    *("clip", "clip.config", "clip.errors", "clip.simple_tokenizer", "clip.images", "clip.preprocess"),
    *("clip.inference.exported", "clip.inference.loading", "clip.features", "clip.embedding_files"),
    *("clip.prompts", "clip.evaluation.zero_shot", "clip.fidelity", "clip.cli.main", "clip.cli.options"),
    *("clip.cli.classify", "clip.cli.encode", "clip.checkpoints.mapped", "clip.inference.numpy_text"),
    *(f"clip.search.{module.name}" for module in pkgutil.iter_modules(clip.search.__path__)),
)

LATE = ("torch", "faiss", "pymilvus", "ray", "pyarrow", "PIL.Image", "simplejpeg", "regex", "ftfy", "requests", "rich")
"""What a search in words does without."""

NEEDLESS = (
    *("jinja2", "rich", "requests", "filelock", "huggingface_hub", "pyarrow", "matplotlib", "pandas", "scipy"),
    *("onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "sympy", "torchvision", "transformers"),
    *("torch._dynamo", "torch._inductor", "torch.onnx", "torch.utils.tensorboard", "unittest", "asyncio"),
)

STAND_IN = """
import sys
import numpy as np
from clip.inference import openvino_engine

def image_graph(images):
    # Pictures are embedded as their mean colour; the texts red, green and blue as those.
    assert images.dtype == np.float32 and images.shape[1:] == (3, 32, 32)
    return images.mean(axis=(2, 3))

def text_graph(text):
    return np.stack([(text == word).sum(axis=1) for word in (736, 1901, 1746)], axis=1) + np.float32(0.01)

openvino_engine.open_graphs = lambda folder, manifest, precision: (image_graph, text_graph, manifest.precision)
"""

MANIFEST = {
    **{"format": "everyclip-export", "version": 1, "engine": "openvino", "precision": "int8", "fingerprint": "f00d"},
    **{"logit_scale": 3.0, "logit_bias": None, "files": dict.fromkeys(ENGINES["openvino"], 0)},
    "preprocess": Preprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1)).to_dict(),
    "config": CLIPConfig(
        embed_dim=3,
        image_resolution=32,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=16,
        transformer_width=64,
        transformer_layers=1,
    ).to_dict(),
}


def run(code: str, *arguments: object) -> Any:
    """What ``code`` prints as its last line, read as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.zeros((40, 48, 3), np.uint8)
    pixels[..., 2] = 200
    Image.fromarray(pixels).save(tmp_path / "blue.png")
    return tmp_path / "blue.png"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "clip.json").write_text(json.dumps(MANIFEST))
    for name in ENGINES["openvino"]:
        (folder / name).touch()
    return folder


def test_modules_that_need_no_torch_import_none() -> None:
    code = """
import importlib, json, sys
guilty = []
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        guilty.append(name)
        break
print(json.dumps(guilty))
"""
    assert run(code, *TORCH_FREE) == []


def test_classify_with_an_exported_model_imports_no_torch(picture: Path, exported: Path) -> None:
    code = STAND_IN + (
        "import json\n"
        "from clip.cli.main import run\n"
        "status = run(['classify', sys.argv[1], '--labels', 'red,green,blue', '--json', '--model', sys.argv[2]])\n"
        "print(json.dumps([status, 'torch' in sys.modules]))\n"
    )
    command = [sys.executable, "-c", code, str(picture), str(exported)]
    outcome = subprocess.run(command, check=True, capture_output=True, text=True)
    answer, end = map(json.loads, outcome.stdout.splitlines())
    assert end == [0, False]
    assert answer["label"] == "blue"
    assert (answer["engine"], answer["precision"]) == ("openvino", "int8")
    assert outcome.stderr == ""


def test_encode_with_an_exported_model_imports_no_torch(picture: Path, exported: Path, tmp_path: Path) -> None:
    code = STAND_IN + (
        "import json\n"
        "from clip.cli.main import run\n"
        "status = run(['encode', sys.argv[1], '--output', sys.argv[2], '--model', sys.argv[3], '--quiet'])\n"
        "print(json.dumps([status, 'torch' in sys.modules]))\n"
    )
    assert run(code, picture, tmp_path / "out.npy", exported) == [0, False]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), [[0, 0, 1]])
    about = json.loads((tmp_path / "out.npy.jsonl").read_text().splitlines()[0])
    assert about.items() >= {"engine": "openvino", "precision": "int8", "fingerprint": "f00d"}.items()


def test_an_exported_model_runs_on_the_cpu_alone(picture: Path, exported: Path) -> None:
    code = STAND_IN + (
        "import json\n"
        "from clip.cli.main import run\n"
        "call = ['classify', sys.argv[1], '--labels', 'red,blue', '--model', sys.argv[2], '--device']\n"
        "print(json.dumps([run([*call, 'cuda']), run([*call, 'cpu']), 'torch' in sys.modules]))\n"
    )
    assert run(code, picture, exported) == [2, 0, False]


def test_the_first_answer_of_a_model_of_torch_waits_for_nothing_needless(picture: Path) -> None:
    code = """
import contextlib, io, json, sys
import torch
before = set(sys.modules)
from clip.cli.main import run
with contextlib.redirect_stdout(io.StringIO()):
    status = run(["classify", sys.argv[1], "--labels", "red,blue"])
print(json.dumps([status, sorted(set(sys.modules) - before)]))
"""
    status, imported = run(code, picture)
    assert status == 0
    assert not {name for name in imported if name.startswith(NEEDLESS)}


def test_a_search_in_words_imports_no_torch_and_answers_as_torch_does(tmp_path: Path) -> None:
    with Index.open(tmp_path / "index", create=True, precision="fp32") as index:
        update_folders(index.store, index.encoder, [str(Path(clip.samples.__path__[0]) / "photos")])
        index.refresh()
        assert index.encoder.is_loaded  # the model of torch, which made the embeddings, gets the query too
        by_torch = [(hit.path, hit.similarity, hit.match) for hit in index.search("a dog").hits]
    code = """
import json, sys
from clip.search.index import Index
with Index.open(sys.argv[1]) as index:
    hits = [(hit.path, hit.similarity, hit.match) for hit in index.search("a dog").hits]
print(json.dumps([hits, sorted(sys.modules)]))
"""
    hits, imported = run(code, tmp_path / "index")
    assert not set(LATE) & set(imported)
    assert [path for path, _, _ in hits] == [path for path, _, _ in by_torch]
    np.testing.assert_allclose([hit[1:] for hit in hits], [hit[1:] for hit in by_torch], rtol=0, atol=1e-5)
