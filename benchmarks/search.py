"""`clip search` beside rclip: the whole command, from its start to its end, with the hits printed.

    python -m venv reference && reference/bin/python -m pip install rclip
    python benchmarks/search.py --reference-python reference/bin/python --vectors vectors

Both have the same pictures in an index of their own and print the best 20 of all of them for one line of words, without
looking for new files (rclip's ``--no-indexing``). Neither needs a network, so rclip's own model is not there; instead:

- "no encoder": in both, the function that makes an embedding of the words gives one from a file. What remains is all
  that is not the model.
- "ViT-B/32 by ONNX Runtime": both run the text tower of one ViT-B/32 with random weights, which is the architecture of
  rclip's own model, in the engine that rclip uses, each by its own unchanged command. rclip always computes all 77
  tokens, `clip search` those that there are.
- "without an export": `clip search` with the file of the same weights, which is how most people have a model.
- "pocket": what `clip search` does unless told otherwise.

Every round starts each once, at each size, one after the other, to and fro; a ratio is taken within a round, and the
table gives the median, and in brackets the least and the largest. Files are in the disk's cache. "python" and "NumPy"
are an interpreter that does nothing, and one that imports NumPy: no command here can be faster.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stores import SOURCE, blocks_of, machine_line, make_facts, path_of, ratios, rows_of, say  # the script beside it
from vectors import Array, add_arguments, read_or_make, unit

QUERY, HITS = "a red car on a beach at sunset", 20
TARGET, NOT_THE_MODEL_SECONDS = 0.5, 0.15
"""Of rclip's seconds, at most; and of all that is not the model."""

# rclip and `clip search` without an encoder: this, then their own main.
STUB = {
    "rclip": """
import sys
import numpy as np
from rclip.main import main
from rclip.model import Model
Model.ensure_downloaded = lambda self: None
Model.compute_text_features = lambda self, texts: np.load(r"{query}")[None]
main()
""",
    "ours": """
import sys
import numpy as np
from clip.search.encoder import Encoder
Encoder.texts = lambda self, texts: np.load(r"{query}")[None]
from clip.cli.main import main
main()
""",
}


class Command(NamedTuple):
    title: str
    reference: str
    """What its ratio is taken to."""
    arguments: Callable[[argparse.Namespace, Path, int], list[str]]
    """From the options, the folder of all indexes and the number of pictures."""


def of_ours(index: str, stub: bool, options: argparse.Namespace, folder: Path, count: int) -> list[str]:
    start = ["-c", STUB["ours"].format(query=folder / "query.npy")] if stub else ["-m", "clip"]
    return [sys.executable, *start, "search", QUERY, "--in", str(folder / f"{index}-{count}"), "-k", str(HITS)]


def of_rclip(stub: bool, options: argparse.Namespace, folder: Path, count: int) -> list[str]:
    start = ["-c", STUB["rclip"].format(query=folder / "query.npy")] if stub else ["-m", "rclip"]
    return [options.reference_python, *start, "--no-indexing", "--top", str(HITS), QUERY]


COMMANDS = {
    "python": Command("python", "", lambda *_: [sys.executable, "-c", ""]),
    "numpy": Command("NumPy", "", lambda *_: [sys.executable, "-c", "import numpy"]),
    "rclip": Command("rclip, no encoder", "rclip", functools.partial(of_rclip, True)),
    "ours": Command("clip search, no encoder", "rclip", functools.partial(of_ours, "onnx", True)),
    "rclip-onnx": Command("rclip, ViT-B/32 by ONNX Runtime", "rclip-onnx", functools.partial(of_rclip, False)),
    "ours-onnx": Command(
        "clip search, ViT-B/32 by ONNX Runtime", "rclip-onnx", functools.partial(of_ours, "onnx", False)
    ),
    "ours-numpy": Command(
        "clip search, ViT-B/32 without an export", "rclip-onnx", functools.partial(of_ours, "numpy", False)
    ),
    "ours-pocket": Command("clip search, pocket", "rclip-onnx", functools.partial(of_ours, "pocket", False)),
}


# What is searched ----------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, folder: Path, pictures: Array, query: Array) -> None:
    """Indexes of every size, for both, and the model."""
    import numpy as np

    from clip.search.index import Index

    np.save(folder / "query.npy", query)
    warnings.simplefilter("ignore")  # a file of weights does not tell its activation; it is the right one
    say("exporting a ViT-B/32")
    export_model(folder)
    facts = make_facts(max(options.counts))
    np.savez(folder / "facts.npz", sizes=facts.sizes)
    for count in options.counts:
        say(f"indexing {count:,} embeddings")
        root = str(folder / f"pictures-{count}")
        Path(root).mkdir()
        for name, model in (
            ("onnx", str(folder / "onnx")), ("numpy", str(folder / "model.safetensors")), ("pocket", "pocket"),
        ):  # fmt: skip
            with Index.open(folder / f"{name}-{count}", model=model, create=True) as index:
                for block in blocks_of(count):
                    embeddings = unit(np.array(pictures[block.start : block.stop, : index.about.embed_dim]))
                    index.store.add(rows_of(block, facts, root=root), embeddings)
                index.refresh()
        np.save(folder / "embeddings.npy", pictures[:count])
        fill = [options.reference_python, __file__, "--fill-rclip", str(folder), str(count)]
        subprocess.run(fill, check=True, env=environment("rclip", folder, count))
        put_model(folder, folder / f"rclip-{count}")


def export_model(folder: Path) -> None:
    """One ViT-B/32 with random weights, as `clip search` takes it and as rclip does."""
    import onnx
    from safetensors.torch import save_file

    import clip
    from clip.bench.random_weights import random_model
    from clip.exports.export import export

    model = random_model(clip.config.architecture("ViT-B/32"), 0)
    clip.model.convert_weights(model)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    export(folder / "model.safetensors", folder / "onnx", to="onnx", activation="quick_gelu")
    graph = onnx.load(folder / "onnx" / "text.onnx")  # its ids are int32, rclip's int64
    given = graph.graph.input[0]
    cast = onnx.helper.make_node("Cast", ["input"], [given.name], to=given.type.tensor_type.elem_type)
    graph.graph.node.insert(0, cast)
    given.name = "input"
    given.type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(graph, folder / "rclip.onnx")


def put_model(folder: Path, data: Path) -> None:
    """Where rclip looks for its own. It asks for the visual one, too, and does not open it."""
    model = data / "ViT-B-32-256-datacomp_s34b_b86k"
    (data / "tokenizer").mkdir()
    model.mkdir()
    os.link(folder / "rclip.onnx", model / "textual.onnx")
    (model / "visual.onnx").touch()
    shutil.copy(SOURCE / "clip" / "bpe_simple_vocab_16e6.txt.gz", data / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz")


def fill_rclip(folder: Path, count: int) -> None:
    """Through rclip's own class, under its interpreter."""
    import numpy as np
    from rclip import db
    from rclip.utils import helpers

    database = db.DB(helpers.get_app_datadir() / "db.sqlite3")
    sizes = np.load(folder / "facts.npz")["sizes"]
    for number, embedding in enumerate(np.load(folder / "embeddings.npy")):
        path = path_of(number, str(folder / f"pictures-{count}"))
        image = db.NewImage(
            filepath=path, modified_at=1.7e9 + number, size=int(sizes[number]), vector=embedding.tobytes(),
            hash=f"{number:032x}",
        )  # fmt: skip
        database.upsert_image(image, commit=False)
    database.close()


# The comparison ------------------------------------------------------------------------------------------------------


def environment(name: str, folder: Path, count: int) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    if "rclip" not in name:
        return variables | {"PYTHONPATH": str(SOURCE)}
    return variables | {"RCLIP_DATADIR": str(folder / f"rclip-{count}")}


def run(
    name: str, options: argparse.Namespace, folder: Path, count: int, more: Sequence[str] = ()
) -> tuple[float, str]:
    """Seconds of a command from its start to its end, and what it printed."""
    arguments = [*COMMANDS[name].arguments(options, folder, count), *more]
    variables = environment(name, folder, count)
    begin = time.perf_counter()
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=variables,
        cwd=folder / f"pictures-{count}", check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{COMMANDS[name].title} failed:\n{done.stderr}")
    return seconds, done.stdout


def same_hits(options: argparse.Namespace, folder: Path, count: int) -> int:
    """How many of rclip's hits `clip search` has, too, with the same embedding of the words."""
    paths = ["--filepath-only"], ["--paths"]
    theirs, ours = (
        set(run(name, options, folder, count, more)[1].splitlines())
        for name, more in zip(("rclip", "ours"), paths, strict=True)
    )
    if len(theirs) != HITS:
        raise SystemExit(f"rclip printed {len(theirs)} hits, not {HITS}")
    return len(theirs & ours)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    vectors = read_or_make(options.vectors, max(options.counts), folder)
    prepare(options, folder, vectors.pictures, vectors.queries[0])
    seconds: dict[str, dict[str, list[float]]] = {}
    same = {count: same_hits(options, folder, count) for count in options.counts}
    for turn in range(options.rounds + 1):  # the first warms the disk's cache and does not count
        say(f"round {turn} of {options.rounds}")
        for count in options.counts:
            rounds = seconds.setdefault(str(count), {name: [] for name in COMMANDS})
            for name in list(COMMANDS)[:: 1 if turn % 2 else -1]:
                value, _ = run(name, options, folder, count)
                if turn:
                    rounds[name].append(value)
    return {"seconds": seconds, "same hits": same}


def table(result: dict[str, Any]) -> str:
    counts = list(result["seconds"])
    head = [cell for count in counts for cell in (f"{int(count):,} pictures, s", "× rclip")]
    lines = [f"| | {' | '.join(head)} | target |", "|---" + "|---:" * (len(head) + 1) + "|"]
    for name, command in COMMANDS.items():
        cells = [command.title]
        for count in counts:
            rounds = result["seconds"][count]
            reference = command.reference
            cells.append(f"{statistics.median(rounds[name]):.3f}")
            cells.append("1" if name == reference else ratios(rounds[name], rounds[reference]) if reference else "")
        cells.append(f"≤ {TARGET}" if name.startswith("ours") else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(result: dict[str, Any]) -> str:
    """The two targets at each size."""
    lines = []
    for count, rounds in result["seconds"].items():
        part = statistics.median(rounds["ours"])
        lines.append(
            f"{int(count):,} pictures: all that is not the model takes {1000 * part:.0f} ms of a command, target ≤ "
            f"{1000 * NOT_THE_MODEL_SECONDS:.0f} ms: {'met' if part <= NOT_THE_MODEL_SECONDS else 'missed'}; "
            f"{result['same hits'][int(count)]} of rclip's {HITS} hits are ours, too"
        )
        for name in (name for name in COMMANDS if name.startswith("ours")):
            reference = COMMANDS[name].reference
            value = statistics.median(a / b for a, b in zip(rounds[name], rounds[reference], strict=True))
            word = "met" if value <= TARGET else "missed"
            title, other = COMMANDS[name].title, COMMANDS[reference].title
            lines.append(f"{int(count):,} pictures: {title}: {value:.2f} × {other}, target ≤ {TARGET}: {word}")
    return "\n".join(f"- {line}" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="interpreter of an environment with rclip")
    add_arguments(parser)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="(default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all values of all rounds")
    parser.add_argument("--fill-rclip", nargs=2, help=argparse.SUPPRESS)  # how this script starts itself
    options = parser.parse_args()
    if options.fill_rclip:
        fill_rclip(Path(options.fill_rclip[0]), int(options.fill_rclip[1]))
    elif not options.reference_python:
        parser.error("--reference-python is needed")
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder).resolve())
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
        version = subprocess.run(
            [options.reference_python, "-m", "rclip", "--version"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        print(f"{version}, {options.rounds} rounds; {machine_line()}\n")
        print(table(result), verdicts(result), sep="\n\n")


if __name__ == "__main__":
    main()
