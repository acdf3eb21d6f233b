"""``clip download``: named models → verified files on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from clip.checkpoints.download import default_directory, fetch
from clip.checkpoints.hub import fetch_repository, is_repository_id
from clip.checkpoints.registry import OPENAI_MODELS
from clip.cli import options
from clip.cli.console import ByteBar, Session, json_line, printable
from clip.errors import ModelNotFoundError, choices

__all__ = ["command"]


@options.verb("download", example="clip download ViT-B/32\nclip download RN50 ViT-L/14 --download-root /srv/models")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--download-root",
    metavar="FOLDER",
    help="Where OpenAI's models go; by default .cache/clip in the home folder. The hub has its own cache.",
)
@options.json_output("One JSON object a line for each model.")
def command(session: Session, names: tuple[str, ...], download_root: str | None, as_json: bool) -> None:
    """Fetch models for use without a network.

    Prints where they are. NAME is one from 'clip models', or a repository on the Hugging Face Hub. What is here already
    is only verified.
    """
    for name in names:  # all of them before the first byte
        if name not in OPENAI_MODELS and name != "pocket" and not is_repository_id(name):
            known = choices(name, [*OPENAI_MODELS, "pocket"])
            raise ModelNotFoundError(
                f"model {name!r} not found; known are {known}, and repositories as organisation/name"
            )
    for name in names:
        path = _fetch(session, name, download_root)
        print(json_line({"name": name, "path": str(path)}) if as_json else printable(str(path)), flush=True)


def _fetch(session: Session, name: str, download_root: str | None) -> Path:
    if name in OPENAI_MODELS:
        model = OPENAI_MODELS[name]
        with ByteBar(session, name) as bar:
            return fetch(model.url, sha256=model.sha256, directory=download_root or default_directory(), progress=bar)
    if name == "pocket":
        import clip

        return Path(clip.__path__[0]) / "pocket.safetensors"
    return fetch_repository(name)
