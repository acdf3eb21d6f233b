"""``clip convert``: a checkpoint of any format → one of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import clip
from clip.cli import options
from clip.cli.console import Session, json_line, say

if TYPE_CHECKING:
    from clip.checkpoints.files import Format
    from clip.model import Activation

__all__ = ["command"]


@options.verb(
    "convert",
    example="""
clip convert ViT-B/32 vit-b-32.safetensors --to everyclip
clip convert epoch_32.pt my-model/ --to transformers --activation gelu
""",
)
@click.argument("source")
@click.argument("destination")
@click.option(
    "--to",
    type=click.Choice(["openai", "openclip", "transformers", "everyclip"]),
    required=True,
    help="openai: a state dict; openclip, transformers: a folder; everyclip: safetensors with the configuration.",
)
@click.option(
    "--activation",
    type=click.Choice(["quick_gelu", "gelu"]),
    help="For weights that do not say: quick_gelu is OpenAI's, gelu that of most of OpenCLIP's.",
)
@options.json_output("Print one JSON object about the conversion.")
def command(
    session: Session, source: str, destination: str, to: Format, activation: Activation | None, as_json: bool
) -> None:
    """Rewrite a checkpoint in another format.

    The numbers stay as they are. SOURCE is a path, a name from 'clip models', or a repository on the Hugging Face Hub.
    DESTINATION must not exist.
    """
    checkpoint = clip.convert(source, destination, to, activation=activation)
    if as_json:
        summary = {"source": source, "found": checkpoint.source, "destination": destination, "format": to}
        print(json_line({**summary, "config": checkpoint.config.to_dict()}))
    elif not session.quiet:
        say(f"{source} ({checkpoint.source}) is now {destination} ({to})")
