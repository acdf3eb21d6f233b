"""The house itself: what importing costs, which names are public, and that imports point down only."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import clip

SOURCE = Path(clip.__file__).parent


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_reads_no_file_touches_no_device_and_configures_no_logging() -> None:
    code = """
import importlib, logging, sys
import importlib.resources, difflib  # whatever the interpreter itself reads
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import clip
heavy = {"torch", "numpy", "PIL", "regex", "ftfy", "requests", "click", "rich", "safetensors"} & set(sys.modules)
others = [name for name in opened if not name.endswith((".py", ".pyc"))]
print(sorted(heavy), others, logging.getLogger("clip").handlers, logging.getLogger().handlers)
"""
    assert _run(code) == "[] [] [] []\n"


def test_submodules_resolve_after_import_clip_alone() -> None:
    code = """
import clip
from clip import clip as face
print(clip.clip is face, clip.clip.load is clip.load)
print(clip.model.CLIP.__name__, clip.simple_tokenizer.SimpleTokenizer.__name__)
"""
    assert _run(code).split() == ["True", "True", "CLIP", "SimpleTokenizer"]


def test_all_is_what_can_be_imported() -> None:
    for name in clip.__all__:
        assert getattr(clip, name) is not None, name
    assert set(clip.__all__) <= set(dir(clip))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = clip.nonsense


def _modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages([str(SOURCE)], "clip.") if m.name != "clip.__main__"]


@pytest.mark.parametrize("name", _modules())
def test_every_module_says_what_it_is_and_exports_what_it_has(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, "a module begins with a docstring"
    for public in getattr(module, "__all__", []):
        assert hasattr(module, public), public


def test_names_of_openai_are_where_their_users_look() -> None:
    from clip import clip as face
    from clip import model, simple_tokenizer

    for name in ("load", "tokenize", "available_models", "_MODELS", "_download", "_transform", "_tokenizer"):
        assert hasattr(face, name), name
    for name in ("AttentionPool2d", "Bottleneck", "CLIP", "LayerNorm", "ModifiedResNet", "QuickGELU", "Transformer"):
        assert hasattr(model, name), name
    for name in ("ResidualAttentionBlock", "VisionTransformer", "build_model", "convert_weights"):
        assert hasattr(model, name), name
    for name in ("SimpleTokenizer", "basic_clean", "bytes_to_unicode", "default_bpe", "get_pairs", "whitespace_clean"):
        assert hasattr(simple_tokenizer, name), name


# Arrows point down: a part may import parts of lower rank, and of its own folder. Tasks do not know each other.
RANKS = {
    "errors": 0,
    "config": 1,
    "model": 1,
    "preprocess": 1,
    "images": 1,
    "image_headers": 1,
    "picture_files": 1,
    "simple_tokenizer": 1,
    "checkpoints": 2,
    "clip": 3,
    "fidelity": 3,
    "samples": 3,
    "inference": 4,
    "exports": 5,
    "features": 5,
    "embedding_files": 5,
    "html_page": 1,
    "intervals": 1,
    "prompts": 1,
    "data": 5,
    "evaluation": 6,
    "training": 6,
    "search": 6,
    "moderation": 6,
    "guidance": 6,
    "bench": 6,
    "serving": 7,
    "cli": 8,
    "__init__": 9,
    "__main__": 9,
}
BESIDE = {("model", "config"), ("images", "image_headers"), ("embedding_files", "features")}


def _imports(path: Path) -> set[str]:
    """Parts of the package that a file imports, also inside functions and for types."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_root = node.module == "clip"
            names = [f"clip.{alias.name}" for alias in node.names] if is_root else [node.module]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("clip.")}
    return parts


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows_point_down(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert own in RANKS, f"{own} has no place in the house yet: give it a rank, and draw it in the README"
    for part in _imports(path) - {own, "__version__"}:
        if part in RANKS and (own, part) not in BESIDE:
            assert RANKS[part] < RANKS[own], (
                f"{path.relative_to(SOURCE)} imports {part}, which stands above or beside it"
            )
