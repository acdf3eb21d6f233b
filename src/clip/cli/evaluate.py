"""``clip evaluate``: how good a model is on pictures whose names or captions are known."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip.cli import options
from clip.cli.console import Session, json_line, printable, progress, rounded, say
from clip.errors import ClipError

if TYPE_CHECKING:
    from clip.data.records import Source
    from clip.evaluation.results import ClassificationResult, Evaluation, Measure
    from clip.inference.loading import Model
    from clip.inference.precision import Precision
    from clip.preprocess import Preprocess

__all__ = ["command"]

DONE, FAILED = 0, 1
TASKS = ("auto", "classification", "retrieval", "linear-probe", "few-shot")


@options.verb(
    "evaluate",
    example="""
clip evaluate ViT-B/32 --data imagenet/val --class-names imagenet.txt
clip evaluate run/model.safetensors --data pairs.csv --against pocket
clip evaluate pocket --data fashion/test --train fashion/train --html fashion.html
clip evaluate ViT-B/32 --data pairs.csv --against ViT-B/32 --against-precision fp32
clip evaluate pocket --probe --probe-count 50
""",
)
@click.argument("model", default="pocket", metavar="[MODEL]")
@click.option("--data", metavar="ADDRESS", help="The test pictures: class folders, a table, shards, IDX files.")
@click.option("--split", metavar="NAME", help="The part of --data to take, such as test.")
@click.option("--train", metavar="ADDRESS", help="Training pictures, for the linear probe and few-shot.")
@click.option("--train-split", metavar="NAME", help="The part of --train to take, such as train.")
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default="auto",
    show_default=True,
    help="auto: classification where there are classes, with --train also linear probe and few-shot; else retrieval.",
)
@click.option("--class-names", metavar="FILE", help="Names of the classes, one a line, or a JSON list with synonyms.")
@click.option("--template", multiple=True, metavar="TEXT", help="A prompt with {} for the name; may be repeated.")
@click.option("--templates-file", metavar="FILE", help="Prompts, one a line, or a JSON list.")
@click.option("--data-kind", metavar="KIND", help="How to read ADDRESS, where looking at it does not tell.")
@click.option("--image-column", metavar="NAME", help="Column of a table with the pictures.")
@click.option("--caption-column", metavar="NAME", help="Column of a table with the captions or class names.")
@click.option("--truncate", is_flag=True, help="Cut captions that are too long, instead of leaving them out.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take N test pictures, evenly spaced.")
@click.option("--against", metavar="MODEL", help="Another model: also show the difference, picture by picture.")
@click.option(
    "--against-precision",
    type=click.Choice(options.PRECISIONS),
    help="Of the other model, by default that of --precision; of the same one, to see what a precision costs.",
)
@click.option("--probe", is_flag=True, help="Also test counting, colours, places and negation on generated pictures.")
@click.option("--things", metavar="FOLDER", help="Pictures of single things for --probe, in place of shapes.")
@click.option("--probe-count", type=click.IntRange(min=1), metavar="N", help="Scenes of each kind, by default 200.")
@click.option(
    "--bootstrap",
    "resamples",
    type=click.IntRange(min=100),
    default=1000,
    show_default=True,
    metavar="N",
    help="Samples for the intervals.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of all that is drawn.")
@click.option("--html", metavar="FILE", help="Write a page with plots and the worst pictures.")
@options.json_output("Print one JSON object.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
@click.option(
    "--precision",
    type=click.Choice(options.PRECISIONS),
    default="auto",
    show_default=True,
    help="Of the matrix products; auto is bf16 where the processor has units for it (fp16 on CUDA), else fp32.",
)
@options.batch_size(64)
def command(
    session: Session,
    model: str,
    data: str | None,
    split: str | None,
    train: str | None,
    train_split: str | None,
    task: str,
    class_names: str | None,
    template: tuple[str, ...],
    templates_file: str | None,
    data_kind: str | None,
    image_column: str | None,
    caption_column: str | None,
    truncate: bool,
    limit: int | None,
    against: str | None,
    against_precision: Precision | None,
    probe: bool,
    things: str | None,
    probe_count: int | None,
    resamples: int,
    seed: int,
    html: str | None,
    as_json: bool,
    device: str | None,
    precision: Precision,
    batch_size: int,
) -> int:
    """Measure a model on pictures with known names or captions.

    MODEL is a name from 'clip models', the path of a checkpoint or an exported folder, or a repository, by default
    pocket. Every number comes with its 95 % interval, with how many items it is made of, and with what guessing would
    give.

    A picture that cannot be read is reported and is in none of the numbers; the exit status is then 1.
    """
    if data is None and not probe:
        raise click.UsageError("pass --data ADDRESS, or --probe for generated pictures")
    if data is None and (train or against or class_names):
        raise click.UsageError("--train, --against and --class-names need --data ADDRESS")
    if against_precision is not None and against is None:
        raise click.UsageError("--against-precision is about --against MODEL; pass it too")
    if not probe and (things is not None or probe_count is not None):
        raise click.UsageError("--things and --probe-count are about --probe; pass it too")
    if html is not None and not Path(html).parent.is_dir():
        raise click.UsageError(f"--html {html!r}: its folder does not exist; create it")
    if html is not None:
        from clip.html_page import new_figure

        new_figure()  # raises without matplotlib, which would be late after the model's work

    from clip import prompts
    from clip.evaluation import probe as generated
    from clip.evaluation.evaluate import compare, evaluate, tasks_of
    from clip.evaluation.results import Evaluation
    from clip.evaluation.scenes import kinds_of, shapes
    from clip.evaluation.things import read_things
    from clip.inference.loading import runtime_of

    names = prompts.read_names(class_names) if class_names is not None else []
    templates = [*template, *(prompts.read_templates(templates_file) if templates_file is not None else ())]
    prompts.checked_templates(templates or prompts.DEFAULT_TEMPLATES)  # before the seconds that a model takes
    how = {"kind": data_kind, "image_column": image_column, "caption_column": caption_column}
    source = None if data is None else _open(data, split=split, **how)
    training = None if train is None else _open(train, split=train_split, **how)
    if source is not None:
        has_classes = bool(source.class_names or names)
        tasks_of(task, has_classes=has_classes, has_training=training is not None)  # type: ignore[arg-type]

    def measure(name: str, network: Model, preprocess: Preprocess, source: Source) -> Evaluation:
        total = min(len(source), limit or len(source)) + (len(training) if training is not None else 0)
        with progress(session, f"Evaluating {name}", lambda: total) as bar:
            return evaluate(
                network,
                preprocess,
                source,
                task=task,  # type: ignore[arg-type]  # one of its values: click has looked
                train=training,
                class_names=names,
                templates=templates or prompts.DEFAULT_TEMPLATES,
                truncate=truncate,
                batch_size=batch_size,
                limit=limit,
                resamples=resamples,
                seed=seed,
                name=name,
                advance=bar.advance,
            )

    vocabulary = shapes() if things is None else read_things(things)

    network, preprocess = options.load_for_inference(session, model, device, precision)
    if source is not None:
        result = measure(model, network, preprocess, source)
    else:
        result = Evaluation(
            model=model,
            runtime=runtime_of(network),
            data="",
            task="probe",
            images=0,
            seed=seed,
            resamples=resamples,
            seconds=0.0,
        )
    for item in result.failures:
        say(item.reason if item.key in item.reason else f"{item.key}: {item.reason}")
    if source is not None and against is not None:
        loaded = options.load_for_inference(session, against, device, against_precision or precision)
        other = measure(against, *loaded, source)
        result = dataclasses.replace(result, comparison=compare(result, other))
    if probe:
        count = probe_count or generated.DEFAULT_COUNT
        with progress(session, "Probing", lambda: 2 * count * len(kinds_of(vocabulary))) as bar:
            found = generated.run(
                network,
                preprocess,
                count=count,
                seed=seed,
                things=vocabulary,
                batch_size=batch_size,
                advance=bar.advance,
            )
        result = dataclasses.replace(result, probe=found)
    if as_json:
        print(json_line(_rounded(result.to_dict())), flush=True)
    else:
        _print(result)
    if html is not None:
        from clip.evaluation import report

        report.write(result, html, source=source)
        if not session.quiet:
            say(f"{html}: written")
    if result.failures:
        say(f"error: could not be used, and in none of the numbers: {len(result.failures)}")
        return FAILED
    return DONE


def _open(address: str, **how: str | None) -> Source:
    """The source, with errors in the words of the command line."""
    from clip.data.sources import open_source

    try:
        return open_source(address, **how)  # type: ignore[arg-type]  # a wrong kind is told there
    except ClipError as error:
        message = re.sub(r"\bpass kind=", "pass --data-kind", str(error))
        message = re.sub(r"\bpass (image|caption)_column=", r"pass --\1-column", message)
        raise type(error)(message) from error


def _rounded(value: Any) -> Any:
    """Floats with six significant digits, wherever they are."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


# The table ------------------------------------------------------------------------------------------------------------

Row = tuple[str, "Measure"]

_WORST = 5
_TITLE_WIDTH = 38
_PIPE_WIDTH = 100


def _print(result: Evaluation) -> None:
    """All sections of a result, each a table with one number a line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(
        file=sys.stdout,
        width=None if sys.stdout.isatty() else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as captured:
        console.print(Text(_headline(result), style="bold"), soft_wrap=not sys.stdout.isatty())
        console.print(Text(str(result.runtime), style="dim"))
        for title, rows, notes in _sections(result):
            table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
            table.add_column(Text(title, style="bold"), no_wrap=True, overflow="ellipsis", width=_TITLE_WIDTH)
            for heading in ("value", "95 % interval", "chance"):
                table.add_column(heading, justify="right", no_wrap=True)
            table.add_column("of", no_wrap=True)
            for name, measure in rows:
                chance = "" if measure.chance is None else _number(measure.chance, measure)
                cells = (name, _number(measure.value, measure), _interval(measure), chance, f"{measure.n} {measure.of}")
                table.add_row(*(Text(printable(cell)) for cell in cells))
            console.print()
            console.print(table)
            for note in notes:
                console.print(Text(printable(note), style="dim"), soft_wrap=not sys.stdout.isatty())
    for line in captured.get().splitlines():
        print(line.rstrip())  # a table fills its last column with spaces


def _headline(result: Evaluation) -> str:
    parts = [printable(result.model)]
    if result.data:
        parts.append(f"on {printable(result.data)}: {result.images} images")
    if result.classification is not None:
        parts[-1] += f", {len(result.classification.predictions.class_names)} classes"
    if result.retrieval is not None:
        parts[-1] += f", {len(result.retrieval.captions)} captions"
    if result.failures:
        parts[-1] += f", {len(result.failures)} left out"
    return " ".join(parts)


def _sections(result: Evaluation) -> Iterator[tuple[str, list[Row], list[str]]]:
    """Title, numbers and notes of each part."""
    if result.classification is not None:
        yield from _classification("zero-shot classification", result.classification)
    if result.retrieval is not None:
        for title, direction in (
            ("retrieval, image to text", result.retrieval.image_to_text),
            ("retrieval, text to image", result.retrieval.text_to_image),
        ):
            yield title, _rows(direction.measures), []
    if result.linear_probe is not None:
        probe = result.linear_probe
        note = (
            f"{probe.train_images} training images; l2 {probe.l2:.3g}, the best of {len(probe.sweep)} on "
            f"{probe.validation_images} of them"
        )
        for number, (title, rows, notes) in enumerate(_classification("linear probe", probe.classification)):
            yield title, rows, [note, *notes] if number == 0 else notes
    if result.few_shot is not None:
        few = result.few_shot
        rows = [(f"{point.shots} a class", point.top1) for point in few.points]
        zero = [("zero-shot, by name", few.zero_shot)] if few.zero_shot is not None else []
        draws = len(few.points[0].accuracies) if few.points else 0
        yield "few-shot, top-1 accuracy", [*zero, *rows], [f"mean of {draws} draws"]
    if result.comparison is not None:
        title = f"difference to {printable(result.comparison.other)}"
        how = f"{printable(result.comparison.other)}: {result.comparison.other_runtime}"
        yield title, _rows(result.comparison.measures), [how, "an interval that holds 0 shows no difference"]
    if result.probe is not None:
        yield "generated probe", _rows(result.probe.summary), [f"it {verdict}" for verdict in result.probe.verdicts]


def _classification(title: str, part: ClassificationResult) -> Iterator[tuple[str, list[Row], list[str]]]:
    notes = [f"always the most frequent class: {part.majority:.1%}".replace("%", " %")]
    if worst := _worst(part):
        notes.append(f"found least: {worst}")
    yield title, _rows(part.measures), notes
    if part.prompts is not None:
        rows = [(f"all {len(part.prompts.templates)} together", part.prompts.ensemble)]
        rows += [(score.template, score.top1) for score in part.prompts.templates]
        yield f"{title}, by template", rows, []
    if part.calibration is not None:
        found = part.calibration
        rows = [(measure.title, measure) for measure in found.measures_before]
        rows += [(f"{measure.title}, corrected", measure) for measure in found.measures_after]
        scale = "" if found.logit_scale is None else f" (cosines times {found.logit_scale:.3g})"
        note = f"corrected by temperature {found.temperature:.3g}{scale}, fitted on the other {found.fitted_on} images"
        yield f"{title}, calibration", rows, [note]


def _worst(part: ClassificationResult) -> str:
    """The classes that are found least, with what they are mostly taken for."""
    recalls = [(recall, i) for i, recall in enumerate(part.class_recall.tolist()) if recall < 1]  # NaN is not
    phrases = []
    for _, i in sorted(recalls)[:_WORST]:
        other, times = part.most_taken_for(i)
        taken = f", taken for {other}" if times else ""
        phrases.append(f"{part.predictions.class_names[i]} ({part.confusion[i, i]} of {part.class_support[i]}{taken})")
    return "; ".join(phrases)


def _rows(measures: tuple[Measure, ...]) -> list[Row]:
    return [(measure.title, measure) for measure in measures]


def _number(value: float, measure: Measure) -> str:
    return f"{100 * value:.1f} %" if measure.is_share else f"{value:.3g}"


def _interval(measure: Measure) -> str:
    low, high = _number(measure.low, measure), _number(measure.high, measure)
    return f"{low.removesuffix(' %')} to {high}"
