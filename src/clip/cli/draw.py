"""``clip draw``: words → a picture that the model recognises in them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clip.cli import options
from clip.cli.console import Progress, Session, note, printable, progress
from clip.errors import ConfigError, DataError, choices

if TYPE_CHECKING:
    from torch import Tensor

    from clip.guidance.drawing import Drawing, Step
    from clip.guidance.generators import Generator
    from clip.guidance.recognition import Recognition

__all__ = ["command"]

DONE, INTERRUPTED = 0, 130
VECTOR_STYLES, STYLES = ("shapes", "strokes"), ("shapes", "strokes", "pixels", "fourier")
FORMATS = (".svg", ".png", ".gif", ".mp4")
FILMED = (".gif", ".mp4")
FRAMES = 40
RATES = {"shapes": 0.012, "strokes": 0.01, "pixels": 0.1, "fourier": 0.1}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """What is to be drawn, and how."""

    words: list[str]
    style: str
    shapes: int
    candidates: int
    steps: int
    seconds: float | None
    seed: int
    frames: int
    side: int
    resume: str | None


@options.verb(
    "draw",
    example="""
clip draw "a red heart" -o heart.svg
clip draw "a fish" -o fish.svg -o fish.png -o fish.gif --seed 3
clip draw "a house" --against "a church" -o house.png --size 1024 --candidates 16
""",
)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option(
    "--output",
    "-o",
    "outputs",
    multiple=True,
    required=True,
    metavar="FILE",
    help="FILE.svg, .png, .gif or .mp4 (the last two show how it came about); may be given several times.",
)
@click.option("--style", type=click.Choice(STYLES), default="shapes", show_default=True, help="What to draw with.")
@click.option("--against", multiple=True, metavar="TEXT", help="What it must not be taken for; may be repeated.")
@click.option("--image", "images", multiple=True, metavar="FILE", help="A picture that it should resemble in kind.")
@click.option("--shapes", type=click.IntRange(1, 64), default=5, show_default=True, help="Shapes or strokes, at most.")
@click.option(
    "--candidates", type=click.IntRange(1, 64), default=12, show_default=True, help="Drawings begun; the best is kept."
)
@click.option("--steps", type=click.IntRange(min=1), default=160, show_default=True, help="Of the gradient.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this time with what there is.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed gives another picture.")
@click.option("--size", type=click.IntRange(16, 4096), default=512, show_default=True, help="Pixels of a side.")
@click.option("--frames", "frames_folder", metavar="DIR", help="Also write the way there as PNG files.")
@click.option("--resume", metavar="FILE", help="A checkpoint: kept up to date, and where it exists, gone on from.")
@click.option(
    "--model",
    default="pocket",
    show_default=True,
    metavar="NAME",
    help="Name from 'clip models', or path of a checkpoint.",
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
def command(
    session: Session,
    prompts: tuple[str, ...],
    outputs: tuple[str, ...],
    style: str,
    against: tuple[str, ...],
    images: tuple[str, ...],
    shapes: int,
    candidates: int,
    steps: int,
    seconds: float | None,
    seed: int,
    size: int,
    frames_folder: str | None,
    resume: str | None,
    model: str,
    device: str | None,
) -> int:
    """Draw what PROMPT says.

    Several prompts are drawn as one picture of all of them. It begins with random shapes and follows the gradient of
    how surely the model names the picture by the prompt, and not by one of several hundred other names. The same seed
    gives the same picture. Ctrl-C ends it with what there is.
    """
    for output in outputs:
        _check_output(output, style)
    is_filmed = frames_folder is not None or any(Path(output).suffix.lower() in FILMED for output in outputs)

    from clip.inference.exported import is_exported

    if is_exported(model):
        raise ConfigError(
            f"{model}: an exported model gives no gradients; draw with the checkpoint that it was made of"
        )

    from clip.guidance.recognition import Recognition, rivals
    from clip.guidance.robust_tower import for_pocket

    network, preprocess = options.load_model(session, model, device)
    network.eval()
    objective = Recognition(
        network.float(),
        preprocess,
        prompts=prompts,
        names=rivals(),
        against=against,
        images=images,
        tower=for_pocket() if model == "pocket" else None,
    )
    order = _Order(
        words=" ".join(prompts).lower().split(),
        style=style,
        shapes=shapes,
        candidates=candidates,
        steps=steps,
        seconds=seconds,
        seed=seed,
        frames=FRAMES if is_filmed else 0,
        side=size,
        resume=resume,
    )
    with progress(session, "drawing", lambda: steps) as bar:
        generator, drawing = _draw(order, objective, preprocess.size, _shown(bar))
    _write(generator, drawing, outputs, frames_folder, prompts, size)
    named = objective.named(_picture(generator, 256))
    note(session, f"{drawing.steps} steps in {drawing.seconds:.0f} s")
    for name, probability in named:
        print(f"{probability:6.1%}  {printable(name)}")
    if drawing.stopped == "interrupted":
        return INTERRUPTED
    return DONE


def _check_output(output: str, style: str) -> None:
    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise click.UsageError(f"{output}: ends with none of {choices(suffix, FORMATS)}")
    if suffix == ".svg" and style not in VECTOR_STYLES:
        raise click.UsageError(f"{output}: {style} are no paths; use --style shapes or strokes, or write a .png")
    if not Path(output).resolve().parent.is_dir():
        raise DataError(f"{output}: its folder does not exist; make it first")


def _shown(bar: Progress) -> Callable[[Step], None]:
    done = 0

    def on_step(step: Step) -> None:
        nonlocal done
        bar.advance(step.number - done)
        done = step.number

    return on_step


def _draw(
    order: _Order, objective: Recognition, resolution: int, on_step: Callable[[Step], None]
) -> tuple[Generator, Drawing]:
    import torch

    from clip.guidance.drawing import draw
    from clip.guidance.generators import Fourier, Pixels
    from clip.guidance.sketch import COLOURS, sketch
    from clip.guidance.vector import Strokes

    side = min(max(resolution, 64), 256)
    if order.style == "shapes":
        return sketch(
            objective,
            colours=[COLOURS[word] for word in order.words if word in COLOURS],
            shapes=order.shapes,
            candidates=order.candidates,
            steps=order.steps,
            size=side,
            seed=order.seed,
            seconds=order.seconds,
            frames=order.frames,
            frame_size=min(order.side, 256),
            checkpoint=order.resume,
            on_step=on_step,
        )
    random = torch.Generator().manual_seed(order.seed)
    generator: Generator
    if order.style == "strokes":
        generator = Strokes.random(order.shapes, batch=order.candidates, size=side, background=None, generator=random)
    elif order.style == "pixels":
        generator = Pixels.noise(side, side, batch=order.candidates, generator=random)
    else:
        generator = Fourier.noise(side, side, batch=order.candidates, generator=random)
    drawing = draw(
        generator,
        objective,
        steps=order.steps,
        learning_rate=RATES[order.style],
        keep=((0.25, -(-order.candidates // 2)), (0.5, -(-order.candidates // 4))),
        seed=order.seed,
        seconds=order.seconds,
        frames=order.frames,
        frame_size=min(order.side, 256),
        checkpoint=order.resume,
        on_step=on_step,
    )
    return generator, drawing


def _picture(generator: Generator, side: int) -> Tensor:
    """(3, H, W): shapes at any size, pixels at their own, enlarged."""
    import torch

    from clip.guidance.vector import Vector

    with torch.no_grad():
        if isinstance(generator, Vector):
            return generator.forward(side)[0]
        return torch.nn.functional.interpolate(generator.forward(), (side, side), mode="bicubic", antialias=True)[
            0
        ].clamp(0, 1)


def _write(
    generator: Generator,
    drawing: Drawing,
    outputs: tuple[str, ...],
    frames_folder: str | None,
    prompts: tuple[str, ...],
    size: int,
) -> None:
    from PIL import Image

    from clip.guidance import film
    from clip.guidance.svg import svg_text
    from clip.guidance.vector import Vector

    for output in outputs:
        suffix = Path(output).suffix.lower()
        try:
            if suffix == ".gif":
                film.write_gif(output, drawing.frames)
            elif suffix == ".mp4":
                film.write_mp4(output, drawing.frames)
            elif suffix == ".svg" and isinstance(generator, Vector):
                _atomically(output, svg_text(generator.outlines(), title=", ".join(prompts)).encode())
            else:
                import io

                pixels = (_picture(generator, size).permute(1, 2, 0) * 255).round().byte().numpy()
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
                _atomically(output, buffer.getvalue())
        except OSError as error:
            raise DataError(f"{output}: cannot be written ({error.strerror or error})") from error
    if frames_folder is not None:
        film.write_frames(frames_folder, drawing.frames)


def _atomically(output: str, content: bytes) -> None:
    place = Path(output)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
