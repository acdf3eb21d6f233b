"""The installed commands in processes of their own: imports, pipes, signals, and what is left after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
from clip.embedding_files import read_embeddings
from clip.model import CLIP, CLIPConfig

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    transformer_width=64,
    transformer_layers=1,
)
CLIP_COMMAND = [sys.executable, "-m", "clip"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """A running ``clip`` whose three streams are pipes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*CLIP_COMMAND, *map(str, arguments)]
    return subprocess.Popen(  # type: ignore[call-overload]
        command, env=ENVIRONMENT, preexec_fn=_heed_interrupts, **{**pipes, **options}
    )


def _heed_interrupts() -> None:
    """Undoes what a shell does to the commands that it runs in the background, these tests perhaps among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def feed(process: subprocess.Popen[bytes], *lines: object) -> None:
    """Writes lines to the process, and leaves its stdin open."""
    assert process.stdin is not None
    process.stdin.write("".join(f"{line}\n" for line in lines).encode())
    process.stdin.flush()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits for the condition; fails with the process's words if it ends before."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"status {process.returncode}: {process.communicate()[1].decode()}")
        time.sleep(0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and forty pictures."""
    folder = tmp_path_factory.mktemp("commands")
    torch.manual_seed(0)
    clip.save(CLIP.from_config(TINY).eval(), folder / "tiny.safetensors")
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def test_a_killed_encode_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    pictures = [shutil.copy(path, tmp_path) for path in sorted(folder.glob("*.png"))]
    Path(pictures[3]).write_bytes(b"no picture")
    whole = ["encode", "-", "--model", folder / "tiny.safetensors", "--batch-size", 4, "--json", "--output"]
    output = tmp_path / "out.npy"
    journal = tmp_path / "out.npy.part.jsonl"
    first = start(*whole, output)
    feed(first, *pictures[:30])  # stdin stays open, so that the process cannot finish
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 10, first)
    assert not output.exists()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    stored = journal.read_bytes().count(b"\n") - 1
    for name in pictures[:stored]:
        Path(name).unlink()  # who reads one of them again will fail
    second = start(*whole, output)
    out, err = second.communicate("".join(f"{name}\n" for name in pictures).encode())
    assert second.returncode == 1  # the picture that is none
    assert not err  # what failed before is not told again
    about = json.loads(out)
    assert about.pop("precision") in ("bf16", "fp32")  # by the processor
    counts = {"rows": 39, "embed_dim": 16, "failed": 1, "resumed": stored}
    assert about == {"output": str(output), "engine": "torch", **counts}
    found = read_embeddings(output)
    assert found.sources == pictures[:3] + pictures[4:]
    third = start("encode", folder, "--model", folder / "tiny.safetensors", "--output", tmp_path / "at_once.npy")
    third.communicate()
    expected = np.delete(read_embeddings(tmp_path / "at_once.npy").embeddings, 3, axis=0)
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-6)  # sums in batches of other sizes
    assert not [path.name for path in tmp_path.iterdir() if ".part" in path.name or ".lock" in path.name]


@pytest.fixture
def one_by_one(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A ``clip classify`` that answers each line of stdin, and has been given five."""
    arguments = ("classify", "-", "--labels", "owl,cat", "--json", "--batch-size", 1)
    with start(*arguments, "--model", folder / "tiny.safetensors") as process:
        feed(process, *(folder / f"{i:02}.png" for i in range(5)))
        yield process


def test_answers_come_while_the_list_still_grows(one_by_one: subprocess.Popen[bytes], folder: Path) -> None:
    assert one_by_one.stdout is not None
    assert json.loads(one_by_one.stdout.readline())["file"] == f"{folder}/00.png"
    assert one_by_one.poll() is None
    assert one_by_one.stdin is not None and one_by_one.stderr is not None
    one_by_one.stdin.close()
    # Not communicate(): it passes over what readline has read ahead.
    rest, err = one_by_one.stdout.readlines(), one_by_one.stderr.read()
    assert (len(rest), err, one_by_one.wait()) == (4, b"", 0)


def test_an_interrupt_is_one_line(one_by_one: subprocess.Popen[bytes]) -> None:
    assert one_by_one.stdout is not None
    one_by_one.stdout.readline()  # it is at work
    one_by_one.send_signal(signal.SIGINT)
    _, err = one_by_one.communicate()
    assert (one_by_one.returncode, err.strip()) == (130, b"clip: interrupted")


def test_a_reader_that_has_enough_is_no_error(one_by_one: subprocess.Popen[bytes], folder: Path) -> None:
    assert one_by_one.stdin is not None
    assert one_by_one.stdout is not None
    assert one_by_one.stderr is not None
    one_by_one.stdout.readline()
    one_by_one.stdout.close()  # as head does
    with contextlib.suppress(BrokenPipeError):  # it may have noticed already
        feed(one_by_one, *[folder / "00.png"] * 20)
        one_by_one.stdin.close()
    assert one_by_one.stderr.read() == b""
    assert one_by_one.wait() == 1


HEAVY = ("torch", "numpy", "PIL", "rich", "requests", "regex", "ftfy", "huggingface_hub", "safetensors", "simplejpeg")
IMPORTS = f"""
import sys
from clip.cli.main import run
status = run(sys.argv[1:])
print(status, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["models"], 0),
        (["classify", "--help"], 0),
        (["classify", "a.png"], 2),
        (["classify", "a.png", "--labels", "cat,cat"], 2),
        (["encode", "a.png"], 2),
        (["convert", "--help"], 0),
        (["download", "nonsense"], 1),
    ],
)
def test_what_needs_no_model_imports_nothing_heavy(arguments: list[str], status: int) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"{status} []"


def test_the_library_is_imported_without_torch() -> None:
    program = "import clip, clip.cli.classify, clip.cli.encode, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["clip", "everyclip"])
def test_both_scripts_are_the_command(name: str) -> None:
    script = Path(sys.executable).parent / name
    if not script.exists():
        pytest.skip("the package is not installed, only on the path")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"everyclip, version {clip.__version__}\n"


def test_a_clip_that_another_package_wrote_over_ours_is_named(tmp_path: Path) -> None:
    package = tmp_path / "clip"
    shutil.copytree(Path(clip.__path__[0]), package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (package / "__init__.py").write_text("from .clip import *\n")  # as in openai/CLIP
    info = tmp_path / "clip-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clip\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("clip\n")
    done = subprocess.run(
        [*CLIP_COMMAND, "models"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"clip: error: {package / '__init__.py'} is not everyclip's: clip also installs")
    assert "pip uninstall clip" in done.stderr
