"""``clip train``: pairs of pictures and texts → a model."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files as package_files
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from clip.cli import options
from clip.cli.console import Session, json_line, rounded, say
from clip.training.config import TrainConfig, checked_fields, field_docs, read_toml

if TYPE_CHECKING:
    from clip.data.records import Source
    from clip.model import CLIP
    from clip.preprocess import Preprocess
    from clip.training.distributed import Processes
    from clip.training.loop import Evaluator, TrainResult
    from clip.training.report import StepReport
    from clip.training.teacher import Teacher

__all__ = ["command"]

DONE, FAILED = 0, 1

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What goes into a run, by name, and where it goes: all that ``TrainConfig`` does not hold."""

    data: tuple[str, ...] = ()
    """Pairs: a folder of pictures with texts, a table, class folders, or shards; several are mixed."""
    data_weights: tuple[float, ...] = ()
    """Shares of several --data in each batch; by default by their sizes."""
    data_kind: str | None = None
    """How to read --data, where looking at it does not tell: folder, classes, csv, tsv, jsonl, parquet, webdataset,
    idx."""
    image_column: str | None = None
    """Column of a table with the pictures."""
    caption_column: str | None = None
    """Column of a table with the captions."""
    template: tuple[str, ...] = ()
    """Caption with {} for the name of the class, for class folders; may be given several times."""
    split: str | None = None
    """The part of --data to train on, such as train."""

    model: str | None = None
    """Start from a checkpoint: a name from 'clip models', a path, or a repository on the Hugging Face Hub."""
    architecture: str | None = None
    """Start from random weights of this size: tiny, small, or as ViT-B/32."""
    teacher: str | None = None
    """A model whose embeddings this one learns as well: a name as for --model."""
    teacher_images: str | None = None
    """A teacher's image embeddings instead: a .npy file with one row for each record of --data."""
    teacher_texts: str | None = None
    """A teacher's text embeddings instead: a .npy file with one row for each record of --data."""
    output: str | None = None
    """The folder of the run. If it holds a run that has not ended, that goes on."""

    crop_scale: tuple[float, ...] = ()
    """Augmentation: least and most of a picture's area that a random crop keeps, for example 0.9 and 1."""
    flip: float | None = None
    """Augmentation: chance of turning left and right round."""
    rotate: float | None = None
    """Augmentation: largest angle in degrees, either way."""
    colour: float | None = None
    """Augmentation: strength of random changes of brightness, contrast and saturation."""
    grey: float | None = None
    """Augmentation: chance of losing all colour."""

    validate: str | None = None
    """Held-out data, in a table with the columns of --data; its accuracy or retrieval is printed at the end."""
    validate_split: str | None = None
    """The part of --validate to measure on, such as val."""
    validate_task: Task = "auto"
    """auto: classification where --validate has classes, else retrieval. Captions that are names can be classified."""

    device: str | None = None
    """cpu, cuda, mps; by default cuda if there is one."""
    nproc: int = 1
    """Processes on this machine, one for each GPU; on several machines use torchrun."""
    tensorboard: bool = False
    """Also write TensorBoard files into RUN/tensorboard."""

    def __post_init__(self) -> None:
        checked_fields(self)


Task = Literal["auto", "classification", "retrieval"]

DIALS = ("crop_scale", "flip", "rotate", "colour", "grey")


def _options_of(*classes: type) -> Callable[[Function], Function]:
    """Options for the fields of dataclasses. None, or nothing, means that an option was not given."""

    def decorate(function: Function) -> Function:
        for cls in reversed(classes):
            for field in reversed(dataclasses.fields(cls)):
                function = _option_of(cls, field)(function)
        return function

    return decorate


def _option_of(cls: type, field: dataclasses.Field[Any]) -> Callable[[Function], Function]:
    kind = get_type_hints(cls)[field.name]
    plain = next((part for part in get_args(kind) if part is not type(None)), kind)
    if get_origin(kind) in (Literal, tuple):
        plain = kind
    name = field.name.replace("_", "-")
    text = field_docs(cls)[field.name]
    if field.default is not None and field.default is not False and field.default != ():
        shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
        text = f"{text}  [default: {shown}]"
    if plain is bool:
        return click.option(f"--{name}/--no-{name}", field.name, default=None, help=text)
    if get_origin(plain) is Literal:
        return click.option(f"--{name}", field.name, type=click.Choice(get_args(plain)), help=text)
    if get_origin(plain) is tuple:
        inner = get_args(plain)[0]
        metavar = "TEXT" if inner is str else "N"
        return click.option(f"--{name}", field.name, type=inner, multiple=True, metavar=metavar, help=text)
    return click.option(f"--{name}", field.name, type=plain, metavar="TEXT" if plain is str else "N", help=text)


@options.verb(
    "train",
    example="""
clip train --data pairs.csv --architecture small --output runs/first --epochs 10
clip train --data photos/ --model ViT-B/32 --lock image --output runs/lit --steps 5000 --nproc 8
clip train --config recipe.toml --learning-rate 1e-4
clip train --output runs/first --plot curves.png
""",
)
@click.option("--config", metavar="FILE", help="A TOML file with any of these options; options given here win.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, with the measured speed, and do not train.")
@click.option("--plot", metavar="FILE", help="Draw the curves of a run (.png, .svg, .pdf); without --data, only that.")
@options.json_output("Print the result as one JSON object.")
@_options_of(Inputs, TrainConfig)
def command(session: Session, config: str | None, dry_run: bool, plot: str | None, as_json: bool, **given: Any) -> int:
    """Train a model on pairs of pictures and texts.

    The run lives in the folder --output. A run that was stopped or killed goes on from its last checkpoint when the
    same command is repeated; one that is finished is left alone. SIGINT (Ctrl-C) and SIGTERM save first.
    """
    values = _merged(config, given)
    inputs = Inputs(**{name: values[name] for name in _names(Inputs) if name in values})
    if inputs.output is None and not dry_run:
        raise click.UsageError("there is no --output; name a folder for the run")
    if plot is not None and not inputs.data:
        return _plot(inputs.output, plot)
    if not inputs.data:
        raise click.UsageError("there is no --data; give a folder, a table or shards of pairs")
    if (inputs.model is None) == (inputs.architecture is None):
        raise click.UsageError("give --model to start from a checkpoint, or --architecture for random weights")
    recipe = TrainConfig(**{name: values[name] for name in _names(TrainConfig) if name in values})
    if inputs.nproc > 1 and not dry_run and "WORLD_SIZE" not in os.environ:
        from clip.training.distributed import launch

        flags = {"--json": as_json, "--quiet": session.quiet, "--debug": session.debug}
        words = [*_words(values), *(flag for flag, is_given in flags.items() if is_given)]
        return launch(["-m", "clip", "train", *words, *(() if plot is None else ("--plot", plot))], inputs.nproc)
    status = _train(session, inputs, recipe, is_dry=dry_run, as_json=as_json)
    if plot is not None and status == DONE and not dry_run and os.environ.get("RANK", "0") == "0":
        _plot(inputs.output, plot)
    return status


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _merged(file: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the file, and over them the options that were given."""
    known = [*_names(Inputs), *_names(TrainConfig)]
    values = {} if file is None else read_toml(file, known)
    values |= {name: value for name, value in given.items() if value is not None and value != ()}
    for name, other in (("steps", "epochs"), ("model", "architecture")):  # an option replaces the file's alternative
        if given.get(name) is not None and given.get(other) is None:
            values.pop(other, None)
        elif given.get(other) is not None and given.get(name) is None:
            values.pop(name, None)
    return values


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    """The command line that gives these values."""
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            yield option if value else f"--no-{option[2:]}"
        else:
            for one in value if isinstance(value, list | tuple) else (value,):
                yield f"{option}={one}"


def _plot(run: str | None, file: str) -> int:
    from clip.training.report import plot

    assert run is not None
    plot(run, file)
    return DONE


# One run --------------------------------------------------------------------------------------------------------------


def _train(session: Session, inputs: Inputs, recipe: TrainConfig, *, is_dry: bool, as_json: bool) -> int:
    from clip.data.augment import Augmentation, TrainingPreprocess
    from clip.training.allocator import keep_freed_memory
    from clip.training.distributed import FailedElsewhereError, processes
    from clip.training.loop import train
    from clip.training.stopping import StoppedError

    dials = {name: getattr(inputs, name) for name in DIALS if getattr(inputs, name) not in (None, ())}
    with processes(inputs.device) as these:
        source = _source(inputs)
        model, preprocess = _start(session, inputs, recipe, these)
        common: dict[str, Any] = {
            "preprocess": preprocess,
            "transform": TrainingPreprocess(preprocess, augmentation=Augmentation(**dials)),
            "teacher": _teacher(session, inputs, recipe, source, model, preprocess, these),
        }
        if is_dry:
            return _dry_run(inputs, recipe, source, model, common, as_json)
        if these.device.type == "cpu":
            keep_freed_memory()
        with _bar(session, these) as on_step:
            try:
                result = train(
                    model,
                    recipe,
                    source,
                    **common,
                    output=inputs.output or "",
                    evaluators=_evaluators(inputs, preprocess),
                    these=these,
                    about={"inputs": {name: getattr(inputs, name) for name in RECORDED}},
                    licence="" if inputs.model is None else _licence(inputs.model),
                    on_step=on_step,
                    tensorboard=inputs.tensorboard,
                )
            except StoppedError as error:
                if these.is_first:
                    say(str(error))
                return error.status
            except FailedElsewhereError:
                return FAILED
        if these.is_first:
            _tell(session, result, as_json)
    return DONE


RECORDED = (
    *("data_kind", "data_weights", "image_column", "caption_column", "template", "split"),
    *("teacher", "teacher_images", "teacher_texts"),
)
"""Inputs that change what is learned; what the start and the data are, the run itself records."""


def _dry_run(
    inputs: Inputs, recipe: TrainConfig, source: Source, model: CLIP, common: Mapping[str, Any], as_json: bool
) -> int:
    from clip.training.estimate import estimate

    found = estimate(model, recipe, source, **common, world_size=inputs.nproc)
    if as_json:
        print(json_line(found.to_dict()))
        return DONE
    what = f"{found.local_batch_size} pairs a step" + (f" of {recipe.batch_size}" if inputs.nproc > 1 else "")
    lines = {
        "parameters": f"{found.image_parameters / 1e6:.1f} M image tower, {found.text_parameters / 1e6:.1f} M text "
        f"tower; {found.trained_parameters / 1e6:.1f} M are trained",
        "data": f"{len(source):,} pairs, {found.steps_per_epoch:,} steps an epoch",
        "steps": f"{found.steps:,}, {found.steps / found.steps_per_epoch:.1f} epochs",
        "FLOPs": f"{found.flops_per_sample / 1e9:.2f} G a pair, forward and backward",
        "memory": f"{found.state_bytes / 1e6:,.0f} MB weights and optimizer, {found.activation_bytes / 1e6:,.0f} MB "
        "activations",
        "speed": f"{found.samples_per_second:,.1f} pairs a second, measured with {what} on this process",
        "time": f"{found.hours:.2f} hours",
    }
    for name, text in lines.items():
        print(f"{name:<10}  {text}")
    return DONE


def _evaluators(inputs: Inputs, preprocess: Preprocess) -> list[Evaluator]:
    if inputs.validate is None:
        return []
    from clip.data.sources import open_source
    from clip.evaluation.validation import evaluator

    source = open_source(
        inputs.validate,
        image_column=inputs.image_column,
        caption_column=inputs.caption_column,
        split=inputs.validate_split,
    )
    return [evaluator(source, preprocess, task=inputs.validate_task)]


def _teacher(
    session: Session,
    inputs: Inputs,
    recipe: TrainConfig,
    source: Source,
    model: CLIP,
    preprocess: Preprocess,
    these: Processes,
) -> Teacher | None:
    from clip.training.teacher import FileTeacher, ModelTeacher

    images, texts = inputs.teacher_images, inputs.teacher_texts
    if inputs.teacher is not None:
        if images or texts:
            raise click.UsageError("give --teacher, or files of a teacher's embeddings, and not both")
        network, its_preprocess = options.load_model(session, inputs.teacher, str(these.device))
        return ModelTeacher(
            network,
            its_preprocess,
            student=model,
            student_preprocess=preprocess,
            micro_batch_size=recipe.micro_batch_size,
        )
    if images or texts:
        return FileTeacher(images=images, texts=texts, records=len(source), student=model)
    return None


def _source(inputs: Inputs) -> Source:
    from clip.data.sources import Mixture, open_source

    sources: list[Source] = [
        open_source(
            address,
            kind=inputs.data_kind,  # type: ignore[arg-type]  # checked there
            image_column=inputs.image_column,
            caption_column=inputs.caption_column,
            templates=inputs.template or None,
            split=inputs.split,
        )
        for address in inputs.data
    ]
    if len(sources) == 1:
        return sources[0]
    return Mixture(tuple(sources), inputs.data_weights or None)


def _start(session: Session, inputs: Inputs, recipe: TrainConfig, these: Processes) -> tuple[CLIP, Preprocess]:
    """The model on its device, in fp32, and how it wants pictures."""
    from clip.preprocess import Preprocess
    from clip.training.start import fresh_model, with_logit_bias

    if inputs.model is not None:
        # Not on its device: half precision, which is usual there, would cost weights that are trained their last bits.
        model, preprocess = options.load_model(session, inputs.model, "cpu")
        if recipe.loss == "sigmoid":
            model = with_logit_bias(model)
        return model.to(these.device), preprocess
    assert inputs.architecture is not None
    model = fresh_model(inputs.architecture, seed=recipe.seed, logit_bias=recipe.loss == "sigmoid")
    return model.to(these.device), Preprocess(size=model.config.image_resolution)


def _licence(name: str) -> str:
    """Terms of the start's weights, where its file says so; files in other formats and published ones do not."""
    from clip.checkpoints.files import read_licence
    from clip.clip import BUNDLED

    return read_licence(str(package_files("clip") / f"{BUNDLED}.safetensors") if name == BUNDLED else name)


def _tell(session: Session, result: TrainResult, as_json: bool) -> None:
    metrics = {name: rounded(value) for name, value in result.metrics.items()}
    if as_json:
        about = {"model": str(result.model), "steps": result.steps, "resumed_from": result.resumed_from}
        print(json_line({**about, "was_finished": result.was_finished, "metrics": metrics}))
        return
    for name, value in metrics.items():
        if "/" in name:
            print(f"{name} {value:g}")
    if session.quiet:
        return
    if result.was_finished:
        say(f"{result.model}: this run was finished already, after {result.steps} steps; nothing was changed")
    else:
        went_on = f", the first {result.resumed_from} of them by an earlier run" if result.resumed_from else ""
        say(f"{result.model}: trained {result.steps} steps{went_on}; loss {metrics.get('loss', 0):g}")


@contextlib.contextmanager
def _bar(session: Session, these: Processes) -> Iterator[Callable[[StepReport], None] | None]:
    """A bar on the terminal of the first process, with what a person watches."""
    if session.quiet or not these.is_first or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task("", total=None, numbers="")
    recent: list[StepReport] = []

    def on_step(report: StepReport) -> None:
        recent.append(report)
        del recent[:-20]
        seconds = sum(one.seconds for one in recent)
        losses = [one.loss for one in recent if math.isfinite(one.loss)] or [math.nan]
        numbers = (
            f"loss {statistics.fmean(losses):.3f}  scale {report.logit_scale:.1f}  "
            f"{sum(one.samples for one in recent) / seconds:,.0f} samples/s  "
            f"waiting {sum(one.wait_seconds for one in recent) / seconds:.0%}"
        )
        bar.update(task, total=report.total_steps, completed=report.step, numbers=numbers)

    with bar:
        yield on_step
