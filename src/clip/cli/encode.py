"""``clip encode``: pictures or texts → a file of embeddings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clip.cli import options
from clip.cli.console import Session, json_line, progress, say
from clip.cli.pictures import STDIN, count, find

if TYPE_CHECKING:
    from clip.features import Failure
    from clip.inference.precision import Precision

__all__ = ["command"]

DONE, FAILED = 0, 1


@options.verb(
    "encode",
    example="""
clip encode photos/ --output photos.npy
find / -name "*.jpg" | clip encode - --output photos.parquet --model ViT-B/32
clip encode --texts captions.txt --output captions.npy
""",
)
@click.argument("pictures", nargs=-1, metavar="[PICTURES...]")
@click.option("--texts", metavar="FILE", help="Encode the lines of a file instead of pictures; - is stdin.")
@click.option("--output", "-o", required=True, metavar="FILE", help="The file to write: .npy or .parquet.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long, instead of leaving them out.")
@click.option("--overwrite", is_flag=True, help="Replace the output file if it is there already.")
@click.option("--restart", is_flag=True, help="Do not go on with what an earlier, ended run has left.")
@options.json_output("Print one JSON object about the file.")
@options.model_options
@options.batch_size(32)
def command(
    session: Session,
    pictures: tuple[str, ...],
    texts: str | None,
    output: str,
    truncate: bool,
    overwrite: bool,
    restart: bool,
    as_json: bool,
    model: str,
    device: str | None,
    precision: Precision,
    batch_size: int,
) -> int:
    """Write embeddings of pictures or texts.

    They are written to a file, one row each, in their order, at unit norm. PICTURES are files, folders (searched with
    the folders inside), quoted patterns, or - for a list of paths on stdin.

    Beside the output, FILE.jsonl says what each row is. Items that cannot be encoded are reported, have a line there
    and no row, and the exit status is then 1. After a crash or kill, the same command goes on where it was.
    """
    if bool(pictures) == (texts is not None):
        raise click.UsageError("pass either PICTURES or --texts FILE")
    if not output.endswith((".npy", ".parquet")):
        raise click.UsageError(f"--output {output!r} must end in .npy or .parquet")
    if not Path(output).parent.is_dir():
        raise click.UsageError(f"{output}: the folder {Path(output).parent} does not exist; create it")
    if Path(output).exists() and not overwrite:
        raise click.UsageError(f"{output} is there already; choose another name, or pass --overwrite")

    from clip.embedding_files import EmbeddingWriter
    from clip.features import encode_images, encode_texts
    from clip.inference.loading import fingerprint_of, runtime_of

    network, preprocess = options.load_for_inference(session, model, device, precision)
    runtime = runtime_of(network)
    about: dict[str, Any] = {"fingerprint": fingerprint_of(model)}
    about |= {"engine": runtime.engine, "precision": runtime.precision}
    about |= {"preprocess": preprocess.to_dict()} if texts is None else {"truncate": truncate}
    problems = 0

    def on_problem(message: str) -> None:
        nonlocal problems
        problems += 1
        say(message)

    total: Callable[[], int | None]
    if texts is None:
        sources, total = find(pictures, on_problem=on_problem), lambda: count(pictures)
    else:
        sources, total = _lines(texts), lambda: None
    writer = EmbeddingWriter(
        output, embed_dim=network.config.embed_dim, about=about, model=model, overwrite=overwrite, restart=restart
    )
    with writer, progress(session, "Encoding", total) as bar:
        bar.advance(writer.resumed)

        def on_error(failure: Failure[Any]) -> None:
            writer.fail(failure)
            message = str(failure.error)
            if texts is not None:
                line = f"line {writer.resumed + failure.position + 1} "
                message = message.replace(f"text {failure.position} ", line).replace("truncate=True", "--truncate")
            with bar.paused():
                say(message)
            bar.advance(1)

        remaining = writer.remaining(sources)
        batches: Iterator[Any] = (
            encode_images(network, preprocess, remaining, batch_size=batch_size, on_error=on_error)
            if texts is None
            else encode_texts(network, remaining, batch_size=batch_size, truncate=truncate, on_error=on_error)
        )
        for batch in batches:
            writer.add(batch)
            bar.advance(len(batch.positions))
        writer.finish()
    summary = {
        "output": output,
        "rows": writer.rows,
        "embed_dim": network.config.embed_dim,
        "failed": writer.failed,
        "resumed": writer.resumed,
        "engine": runtime.engine,
        "precision": runtime.precision,
    }
    if as_json:
        print(json_line(summary))
    elif not session.quiet:
        went_on = f", {writer.resumed} of them by an earlier run" if writer.resumed else ""
        rows = f"{writer.rows} rows of {network.config.embed_dim}{went_on}"
        say(f"{output}: {rows}; {writer.failed} failed; {runtime}")
    return FAILED if writer.failed or problems else DONE


def _lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends, empty ones too: line i is item i."""
    from clip.errors import DataError

    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == STDIN else Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
