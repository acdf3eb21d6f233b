"""Models beside each other on this machine: rates, memory, share of what the machine can do, and the cost in digits.

Each configuration, a model in a precision, is a process of its own. All are loaded first and then take turns, round by
round, so that what else goes on strikes them alike: a ratio is taken within a round, and medians are reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clip.errors
from clip.bench.flops import image_flops, text_flops
from clip.bench.machine import Machine, this_machine
from clip.bench.worker import text_lengths
from clip.config import CLIPConfig
from clip.errors import ClipError, ConfigError, choices
from clip.fidelity import Embeddings, Fidelity, compare

__all__ = ["PRECISIONS", "Measurement", "Probe", "Report", "Speed", "cosine_text", "measure"]

PRECISIONS = ("auto", "fp32", "bf16", "int8")
CEILINGS = ("fp32", "bf16", "int8")
KINDS = ("images", "texts")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one tower at one batch size."""

    per_second: float
    """Images or texts; the median over the rounds."""
    milliseconds: float
    """Of one call, a whole batch; the median."""
    ratio: float
    """To the first configuration of the run at the same batch size: the median of the ratios of each round."""
    ratio_low: float
    ratio_high: float
    """The least and the largest ratio of a round."""
    flops: float
    """Operations a second, counted as the reference computes them (``flops``)."""
    ceiling_share: float | None
    """Of the fastest matrix product in this precision; None where it could not be measured. A form that leaves out
    what nobody reads may seem to pass it."""
    rounds: list[float]
    """Images or texts a second, of each round."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One configuration at one batch size."""

    model: str
    engine: str
    precision: str
    device: str
    batch_size: int
    images: Speed
    texts: Speed
    memory_bytes: int
    """Peak of the process that has loaded this model alone, and encoded batches up to this size."""
    fidelity: Fidelity | None
    """To the exact fp32 model; None where there is none of the same weights among the models."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        fidelity = None if self.fidelity is None else self.fidelity.to_dict()
        return {**dataclasses.asdict(self), "fidelity": fidelity}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of a run."""

    machine: Machine
    ceilings: dict[str, float | None]
    """FLOP/s of the fastest matrix product by precision, over all threads."""
    measurements: list[Measurement]
    notes: list[str]
    """What was left out, and why; what loading warned of."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "machine": self.machine.to_dict(),
            "ceilings": self.ceilings,
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "notes": self.notes,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """Pictures and texts on which the forms of a model are compared."""

    pictures: list[str] | None
    """Files; None: those of the package."""
    texts: list[str]

    @classmethod
    def of_package(cls) -> Probe:
        """The pictures of the package, each with its caption (``clip.samples``)."""
        from clip import samples

        return cls(None, [sample.caption for sample in samples.pictures()])

    @classmethod
    def of_files(cls, pictures: Sequence[str | os.PathLike[str]], labels: Sequence[str]) -> Probe:
        """One's own pictures, answered with one of these labels."""
        if not pictures:
            raise ConfigError("there are no pictures to compare precisions on; name a folder that has some")
        if not labels:
            raise ConfigError("there are no labels to tell the pictures apart by; pass two or more")
        return cls([os.fspath(path) for path in pictures], [f"a photo of a {label}" for label in labels])


def measure(
    models: Sequence[str | os.PathLike[str]] = (),
    *,
    random: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1, 8, 32),
    precisions: Sequence[str] = ("fp32", "auto"),
    rounds: int = 5,
    seconds: float = 0.5,
    threads: int | None = None,
    device: str | None = None,
    probe: Probe | None = None,
    on_round: Callable[[], None] | None = None,
) -> Report:
    """Every model in every precision at every batch size.

    models: as for ``load_for_inference``: names, checkpoints, and folders that ``clip export`` wrote, which bring their
        engine. random: names of architectures, measured with random weights.
    precisions: a model that has not one of them is measured in the others, and a note says so; two that come to the
        same, as "auto" and "bf16" may, are measured once.
    rounds, seconds: of each rate in each round; a round takes one call of each at least.
    threads: processors that each model may use; by default all that this process may.
    probe: what precisions are compared on, against the exact model of the same weights; by default the package's
        pictures. An exported model is compared where the checkpoint it was made of is among the models.
    on_round: called after each round.
    Raises ConfigError, and what loading a model raises.
    """
    _check(models, random, batch_sizes, precisions, rounds, seconds, threads)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clip-bench-")))

        def new_worker(title: str) -> _Process:
            return stack.enter_context(_Process(title, folder, threads))

        with _Process("matrix products", folder, threads) as bare:
            about = bare.ask("ceilings", precisions=CEILINGS, seconds=min(1.0, 2 * seconds))
            paths = {os.fspath(name): os.fspath(name) for name in models}
            for i, name in enumerate(random):
                paths[f"{name} (random)"] = path = str(folder / f"random-{i}.safetensors")
                bare.ask("write_random", architecture=name, path=path)
            fingerprints = {title: bare.ask("fingerprint", name=path) for title, path in paths.items()}
        notes: list[str] = []
        forms = _loaded(paths, fingerprints, precisions, device, new_worker, notes)
        for form in forms:
            for batch_size, kind in itertools.product(sorted(batch_sizes), KINDS):
                form.memory[batch_size] = form.process.ask("warm", kind=kind, batch_size=batch_size)
        _compare(forms, paths, probe or Probe.of_package(), folder, threads, notes)
        cells = list(itertools.product(batch_sizes, KINDS))
        for number in range(rounds):
            for batch_size, kind in cells:
                for form in forms[:: -1 if number % 2 else 1]:  # to and fro, against a drift of the machine
                    calls, elapsed = form.process.ask("time", kind=kind, batch_size=batch_size, seconds=seconds)
                    form.rounds.setdefault((batch_size, kind), []).append(calls * batch_size / elapsed)
            if on_round is not None:
                on_round()
    machine = this_machine(threads=about["threads"], torch=about["torch"])
    measurements = [_measurement(form, forms[0], size, about["ceilings"]) for form in forms for size in batch_sizes]
    return Report(machine=machine, ceilings=about["ceilings"], measurements=measurements, notes=notes)


def _check(
    models: Sequence[Any],
    random: Sequence[str],
    batch_sizes: Sequence[int],
    precisions: Sequence[str],
    rounds: int,
    seconds: float,
    threads: int | None,
) -> None:
    if not models and not random:
        raise ConfigError("there is no model to measure; name one, or an architecture for random weights")
    if not batch_sizes or min(batch_sizes) < 1 or len(set(batch_sizes)) < len(batch_sizes):
        raise ConfigError(f"batch sizes are {list(batch_sizes)}; they must be different, and at least 1")
    if not precisions:
        raise ConfigError(f"there is no precision to measure; choose from {', '.join(PRECISIONS)}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; it must be one of {choices(precision, PRECISIONS)}")
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"seconds is {seconds}; it must be above 0")


# Processes ------------------------------------------------------------------------------------------------------------


class _Process(contextlib.AbstractContextManager["_Process"]):
    """A worker, from this side."""

    def __init__(self, title: str, folder: Path, threads: int | None) -> None:
        self.title = title
        self._log = tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8", errors="replace")  # noqa: SIM115
        package = str(Path(clip.errors.__file__).parents[1])  # this very package, whatever lies in the current folder
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "clip.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": path},
            encoding="utf-8",
        )
        if threads is not None:
            self.ask("limit", threads=threads)

    def ask(self, task: str, **arguments: Any) -> Any:
        """The answer, once it is there. An error of the package that the worker met is raised here."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"task": task, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise ClipError(self._ending(task))
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise getattr(clip.errors, answer["error"])(answer["message"])
        return answer

    def _ending(self, task: str) -> str:
        status = self._process.wait()
        if status < 0:
            return f"{self.title}: its process was ended by signal {-status}; if memory is short, measure fewer at once"
        self._log.seek(0)
        last = (self._log.read().strip() or "no message").splitlines()[-1]
        return f"{self.title}: its process failed at '{task}': {last}"

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if kind is not None:
            self._process.kill()  # whatever it is at, nobody waits for it
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


@dataclasses.dataclass(slots=True)
class _Form:
    """A configuration: its process, and what has been found out about it."""

    process: _Process
    model: str
    fingerprint: str
    engine: str
    precision: str
    device: str
    config: CLIPConfig
    fidelity: Fidelity | None = None
    memory: dict[int, int] = dataclasses.field(default_factory=dict)
    rounds: dict[tuple[int, str], list[float]] = dataclasses.field(default_factory=dict)


def _loaded(
    paths: dict[str, str],
    fingerprints: dict[str, str],
    precisions: Sequence[str],
    device: str | None,
    new_worker: Callable[[str], _Process],
    notes: list[str],
) -> list[_Form]:
    """Every model in every precision that it has, each loaded in a process of its own."""
    forms: list[_Form] = []
    for model, path in paths.items():
        refusals: list[ConfigError] = []
        for precision in precisions:
            process = new_worker(f"{model}, {precision}")
            try:
                about = process.ask("load", name=path, precision=precision, device=device)
            except ConfigError as error:
                refusals.append(error)
                continue
            notes.extend(note for warning in about["warnings"] if (note := f"{model}: {warning}") not in notes)
            config = CLIPConfig.from_dict(about["config"])
            runtime = (about["engine"], about["precision"], about["device"])
            if (model, *runtime) not in [(form.model, form.engine, form.precision, form.device) for form in forms]:
                forms.append(_Form(process, model, fingerprints[model], *runtime, config))
        if len(refusals) == len(precisions):
            raise refusals[0]
        notes.extend(f"{model}: left out: {error}" for error in refusals)
    return forms


def _compare(
    forms: Sequence[_Form], paths: dict[str, str], probe: Probe, folder: Path, threads: int | None, notes: list[str]
) -> None:
    """Sets the fidelity of each form to the exact model of its weights, one exact model in memory at a time."""
    for fingerprint in dict.fromkeys(form.fingerprint for form in forms):
        alike = [form for form in forms if form.fingerprint == fingerprint]
        checkpoint = next((form.model for form in alike if form.engine == "torch"), None)
        if checkpoint is None:
            titles = ", ".join(dict.fromkeys(form.model for form in alike))
            notes.append(f"{titles}: not compared; measure it with the checkpoint that it was made of")
            continue
        try:
            with _Process(f"{checkpoint}, exact", folder, threads) as exact:
                exact.ask("load", name=paths[checkpoint], precision="exact", device="cpu")
                reference = _embeddings(exact, probe, folder)
            for form in alike:
                form.fidelity = compare(reference, _embeddings(form.process, probe, folder))
        except ConfigError as error:  # of a tokenizer that is not ours
            notes.append(f"{checkpoint}: not compared: {error}")


def _embeddings(process: _Process, probe: Probe, folder: Path) -> Embeddings:
    path = folder / "embeddings.npz"
    process.ask("embed", pictures=probe.pictures, texts=probe.texts, path=str(path))
    with np.load(path) as stored:
        return Embeddings(stored["images"], stored["texts"])


# Figures --------------------------------------------------------------------------------------------------------------


def _measurement(form: _Form, first: _Form, batch_size: int, ceilings: dict[str, float | None]) -> Measurement:
    lengths = text_lengths(batch_size, form.config.context_length)
    flops = {
        "images": float(image_flops(form.config)),
        "texts": statistics.fmean(text_flops(form.config, length) for length in lengths),
    }
    ceiling = ceilings.get(form.precision) if form.device == "cpu" else None
    images, texts = (
        _speed(form.rounds[batch_size, kind], first.rounds[batch_size, kind], batch_size, flops[kind], ceiling)
        for kind in KINDS
    )
    return Measurement(
        model=form.model,
        engine=form.engine,
        precision=form.precision,
        device=form.device,
        batch_size=batch_size,
        images=images,
        texts=texts,
        memory_bytes=form.memory[batch_size],
        fidelity=form.fidelity,
    )


def _speed(
    rates: Sequence[float], first: Sequence[float], batch_size: int, flops: float, ceiling: float | None
) -> Speed:
    """rates, first: items a second of each round, of this configuration and of the first one; flops: of one item."""
    ratios = sorted(rate / other for rate, other in zip(rates, first, strict=True))
    per_second = statistics.median(rates)
    return Speed(
        per_second=per_second,
        milliseconds=1000 * batch_size / per_second,
        ratio=statistics.median(ratios),
        ratio_low=ratios[0],
        ratio_high=ratios[-1],
        flops=per_second * flops,
        ceiling_share=per_second * flops / ceiling if ceiling else None,
        rounds=list(rates),
    )


def cosine_text(value: float | None) -> str:
    """With as many digits as tell it from 1, four to seven; a dash for None."""
    if value is None:
        return "–"
    return next((f"{value:.{digits}f}" for digits in (4, 5, 6) if 1 - value >= 10.0**-digits), f"{value:.7f}")
