"""Options that mean the same in every verb, and the model that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clip.cli.console import ByteBar, Session
from clip.errors import ConfigError

if TYPE_CHECKING:
    from clip.inference.loading import Model
    from clip.inference.precision import Precision
    from clip.model import CLIP
    from clip.preprocess import Preprocess

__all__ = [
    "PRECISIONS",
    "batch_size",
    "download",
    "json_output",
    "load_for_inference",
    "load_model",
    "model_options",
    "verb",
]

PRECISIONS = ("auto", "fp32", "bf16", "int8")
"""Those of ``clip.inference.precision``, which imports torch."""

Function = TypeVar("Function", bound=Callable[..., Any])


def verb(
    name: str, *, example: str, cls: type[click.Command] = click.Command
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command with ``--quiet`` and ``--debug``, whose help ends with an example. It is called with the Session."""

    def set_flag(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
        session = ctx.ensure_object(Session)
        setattr(session, str(parameter.name), value)
        return value

    flags = [
        click.Option(["--quiet", "-q"], is_flag=True, help="No progress and no summary on stderr."),
        click.Option(["--debug"], is_flag=True, help="Show logs, and the traceback of an error."),
    ]
    for flag in flags:
        flag.callback, flag.expose_value, flag.is_eager = set_flag, False, True

    def decorate(function: Callable[..., Any]) -> click.Command:
        epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines())
        command = click.command(name, cls=cls, epilog=epilog)(click.pass_obj(function))
        command.params.extend(flags)
        return command

    return decorate


def model_options(function: Function) -> Function:
    """``--model``, ``--device`` and ``--precision``, for ``load_for_inference``."""
    model = click.option(
        "--model",
        default="pocket",
        show_default=True,
        metavar="NAME",
        help="Name from 'clip models', path of a checkpoint or an exported folder, or repository on the Hugging Face "
        "Hub.",
    )
    device = click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
    precision = click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        show_default=True,
        help="Of the matrix products; auto is bf16 where the processor has units for it (fp16 on CUDA), else fp32.",
    )
    return model(device(precision(function)))


def batch_size(default: int) -> Callable[[Function], Function]:
    """``--batch-size``."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        metavar="N",
        help="Items that go through the model at once.",
    )


def json_output(help_text: str) -> Callable[[Function], Function]:
    """``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def load_for_inference(
    session: Session, name: str, device: str | None, precision: Precision
) -> tuple[Model, Preprocess]:
    """The model in its fastest form, to encode with; downloaded with a bar if need be."""
    from clip.inference import exported, loading

    if not exported.is_exported(name):
        _check_device(device)
        download(session, name)
    return loading.load_for_inference(name, device=device, precision=precision)


def load_model(session: Session, name: str, device: str | None) -> tuple[CLIP, Preprocess]:
    """The model itself on its device, to train with; downloaded with a bar if need be."""
    import clip

    _check_device(device)
    download(session, name)
    return clip.load(name, device=device)


def _check_device(device: str | None) -> None:
    import torch

    try:
        kind = torch.device(device).type if device else "cpu"
    except RuntimeError as error:
        raise ConfigError(f"--device {device!r} is no device; use cpu, cuda, cuda:1 or mps") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device!r}: no CUDA device can be used here; use --device cpu")


def download(session: Session, name: str) -> None:
    """One of OpenAI's models, with a bar, where it is not here yet; nothing for another name."""
    from clip.checkpoints.registry import OPENAI_MODELS

    if name in OPENAI_MODELS:
        from clip.checkpoints.download import default_directory, fetch

        model = OPENAI_MODELS[name]
        with ByteBar(session, name) as bar:
            fetch(model.url, sha256=model.sha256, directory=default_directory(), progress=bar)
