"""Options that mean the same in every verb, and the model that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clip.cli.console import ByteBar, Session
from clip.errors import ConfigError

if TYPE_CHECKING:
    from clip.model import CLIP
    from clip.preprocess import Preprocess

__all__ = ["batch_size", "json_output", "load_model", "model_options", "verb"]

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
    """``--model`` and ``--device``, for ``load_model``."""
    model = click.option(
        "--model",
        default="pocket",
        show_default=True,
        metavar="NAME",
        help="Name from 'clip models', path of a checkpoint, or repository on the Hugging Face Hub.",
    )
    device = click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; by default cuda if there is one.")
    return model(device(function))


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


def load_model(session: Session, name: str, device: str | None) -> tuple[CLIP, Preprocess]:
    """The model on its device, downloaded with a bar if need be."""
    import torch

    import clip
    from clip.checkpoints.download import default_directory, fetch
    from clip.checkpoints.registry import OPENAI_MODELS

    try:
        kind = torch.device(device).type if device else "cpu"
    except RuntimeError as error:
        raise ConfigError(f"--device {device!r} is no device; use cpu, cuda, cuda:1 or mps") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device!r}: no CUDA device can be used here; use --device cpu")
    if name in OPENAI_MODELS:
        model = OPENAI_MODELS[name]
        with ByteBar(session, name) as bar:
            fetch(model.url, sha256=model.sha256, directory=default_directory(), progress=bar)
    return clip.load(name, device=device)
