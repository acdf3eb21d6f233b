"""What pocket knows, by tests that its training never saw: the tables of the model card.

    python recipes/pocket/evaluate.py --work build/pocket --photos examples/photos

Lays the tests out (``layout.py``), measures each as ``clip evaluate`` does, and prints them as Markdown, with the
interval at 95 %, what guessing gives, and what no learning at all gives. ``--json`` prints one object a line instead.
The tables are of fp32; ``--precision bf16`` shows what the fast path makes of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from anchors import nearest_names
from layout import STYLES, Layout

import clip
from clip.data.sources import open_source
from clip.evaluation.evaluate import evaluate
from clip.evaluation.results import Evaluation, Measure
from clip.inference.loading import Model, runtime_of
from clip.preprocess import Preprocess

TEMPLATES = ("a drawing of a {}", "an emoji of a {}", "{}")
PHOTO_TEMPLATES = ("a photo of a {}", "{}")
# How the 18 kinds of photographs are called among the emoji; the others have no counterpart.
KINDS = {
    "animal-bird": "bird",
    "animal-marine": "fish or sea creature",
    "animal-bug": "insect or bug",
    "animal-mammal": "mammal",
    "animal-reptile": "reptile or amphibian",
    "animal-amphibian": "reptile or amphibian",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable or nut",
    "place-religious": "gravestone or monument",
    "household": "household object",
    "musical-instrument": "musical instrument",
    "plant-flower": "flower",
    "plant-other": "tree or shrub",
    "sky-weather": "space",
    "sport": "sport equipment",
    "tool": "tool",
    "transport-ground": "vehicle",
    "transport-air": "vehicle",
    "transport-water": "vehicle",
}


def without_learning(layout: Layout) -> dict[tuple[str, str], float]:
    """By test and measure: the label of the nearest training picture of the starter set."""
    training = [record for record in layout.records if record["split"] == "train" and record["style"] in STYLES]
    paths = [layout.starter / record["file"] for record in training]
    found: dict[tuple[str, str], float] = {}
    tests = [("noto", [record["label"] for record in training])]
    if (layout.tests / "tuxpaint-coarse.jsonl").exists():
        tests.append(("tuxpaint-coarse", [KINDS.get(record["subcategory"], "") for record in training]))
    for test, names in tests:
        lines = [json.loads(line) for line in (layout.tests / f"{test}.jsonl").read_text().splitlines()]
        known = [i for i, name in enumerate(names) if name]
        nearest = nearest_names(
            [layout.tests / line["image"] for line in lines], [paths[i] for i in known], [names[i] for i in known], 5
        )
        wanted = [line["caption"] for line in lines]
        hits = [row[0] == name for row, name in zip(nearest, wanted, strict=True)]
        found[test, "top1"] = sum(hits) / len(hits)
        found[test, "top5"] = sum(name in row for row, name in zip(nearest, wanted, strict=True)) / len(hits)
        by_class = [[hit for hit, name in zip(hits, wanted, strict=True) if name == one] for one in sorted(set(wanted))]
        found[test, "mean_per_class"] = sum(sum(part) / len(part) for part in by_class) / len(by_class)
    return found


def evaluations(model: Model, preprocess: Preprocess, layout: Layout) -> Iterator[tuple[str, Evaluation]]:
    """Each test by its name, as ``clip evaluate --data WORK/tests/NAME.jsonl`` would have it."""
    for test, templates in (
        ("noto", TEMPLATES),
        ("noto-retrieval", ()),
        ("unseen", TEMPLATES),
        ("unseen-keywords", TEMPLATES),
        ("unseen-kind", TEMPLATES),
        ("tuxpaint-coarse", PHOTO_TEMPLATES),
        ("tuxpaint-fine", PHOTO_TEMPLATES),
        ("photos", ("{}",)),
        ("clipart", ()),
    ):
        table = layout.tests / f"{test}.jsonl"
        if not table.exists():
            continue
        names = (layout.tests / f"{test}.txt").read_text().splitlines() if templates else ()
        task = "classification" if templates else "retrieval"
        source = open_source(table)
        yield test, evaluate(model, preprocess, source, task=task, class_names=names, templates=templates or TEMPLATES)


def fashion(model: Model, preprocess: Preprocess, layout: Layout) -> Evaluation:
    train, test = (open_source(layout.fashion, kind="idx", split=split) for split in ("train", "test"))
    return evaluate(model, preprocess, test, task="linear-probe", train=train, templates=PHOTO_TEMPLATES)


def measures(evaluation: Evaluation) -> Iterator[tuple[str, Measure]]:
    """With what is measured, in words."""
    if evaluation.classification is not None:
        yield from ((measure.title, measure) for measure in evaluation.classification.measures)
    if evaluation.retrieval is not None:
        for way in ("text_to_image", "image_to_text"):
            found = getattr(evaluation.retrieval, way).measures
            yield from ((f"{way.replace('_', ' ')}, {m.title}", m) for m in found if m.title.startswith("recall"))
    if evaluation.linear_probe is not None:
        found = evaluation.linear_probe.classification.measures
        yield from ((f"linear probe, {measure.title}", measure) for measure in found)


def print_table(test: str, evaluation: Evaluation, anchors: dict[tuple[str, str], float]) -> None:
    for title, measure in measures(evaluation):
        anchor = anchors.get((test, measure.name)) if evaluation.classification is not None else None
        print(
            f"| {test} | {title} | {measure.value:.3f} | {measure.low:.3f} to {measure.high:.3f} | "
            f"{'' if measure.chance is None else f'{measure.chance:.3f}'} | "
            f"{'' if anchor is None else f'{anchor:.3f}'} | {measure.n} {measure.of} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="name or checkpoint file")
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--photos", type=Path, default=Path("examples/photos"))
    parser.add_argument("--without-fashion", action="store_true", help="leave out the 70,000 pictures of Fashion-MNIST")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "int8"), default="fp32")
    arguments = parser.parse_args()
    layout = Layout(arguments.work, arguments.photos)
    layout.write_all()
    model, preprocess = clip.load_for_inference(arguments.model, device="cpu", precision=arguments.precision)
    anchors = without_learning(layout)
    if not arguments.json:
        print(f"{arguments.model}: {runtime_of(model)}\n")
        print("| test | measure | value | 95 % interval | guessing | no learning | of |\n| --- " + "| --- " * 6 + "|")

    def show(test: str, evaluation: Evaluation) -> None:
        if arguments.json:
            print(json.dumps({"test": test, **evaluation.to_dict()}), flush=True)
        else:
            print_table(test, evaluation, anchors)

    for test, evaluation in evaluations(model, preprocess, layout):
        show(test, evaluation)
    if layout.fashion.is_dir() and not arguments.without_fashion:
        show("fashion", fashion(model, preprocess, layout))


if __name__ == "__main__":
    main()
