"""The entry of the ``clip`` command: finds the verb, and turns every outcome into an exit status.

0 done, 1 failed (why, on stderr), 2 wrong usage, 3 a negative verdict asked for with ``--check``, 130 interrupted.
Only click is imported here; torch is when a verb needs a model.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn, cast

import click

import clip
from clip.cli.console import Session, printable, say
from clip.errors import ClipError, ConfigError, choices

__all__ = ["VERBS", "group", "main", "run"]

VERBS = (
    *("classify", "encode", "index", "search", "duplicates", "moderate", "draw", "score", "train", "evaluate", "bench"),
    *("data", "models", "convert", "export", "download"),
)
"""Each is a module of this package with a click command named ``command``, imported when it is asked for."""

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class _Verbs(click.Group):
    """The verbs in their order, each imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            ctx.fail(f"there is no verb {cmd_name!r}; the verbs are {choices(cmd_name, VERBS)}")
        return cast(click.Command, importlib.import_module(f"clip.cli.{cmd_name}").command)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Results go to stdout and everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage, "
    "3 a negative verdict asked for with --check, 130 interrupted.",
)
@click.version_option(
    clip.__version__ if hasattr(clip, "__version__") else "?", "-V", "--version", prog_name="everyclip"
)
def group() -> None:
    """CLIP: compare pictures with texts. It classifies by names that you choose, and makes embeddings.

    \b
      clip classify photos/ --labels "cat,dog,bird"
      clip encode photos/ --output photos.npy
    """


def main() -> NoReturn:
    """Runs the command line of this process, and ends it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is escaped; it is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    logging.basicConfig(format="clip: %(message)s", level=logging.INFO if "--debug" in sys.argv else logging.WARNING)
    if sys.argv[1:2] == ["search"]:
        _hurry()
    status = run(sys.argv[1:])
    gc.freeze()  # the interpreter need not look for cycles in what it is about to leave: 14 ms of a search
    sys.exit(status)


def _hurry() -> None:
    """For a command that is over in a moment."""
    gc.disable()  # what importing makes is no garbage: 8 ms
    # Small products. Where other programs keep the processors busy, each would wait for its second thread to be given
    # one: 0.13 s for a query instead of 0.01 s, measured with two busy programs on two processors.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and gives its exit status; prints a failure as one line, with ``--debug`` a traceback."""
    session = Session()
    try:
        if foreign := _foreign_clip():
            raise ClipError(foreign)
        status = group.main(arguments, prog_name="clip", obj=session, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()  # its message is the help, of lines that are ours
        return WRONG_USAGE
    except click.UsageError as error:
        click.UsageError(printable(error.format_message()), ctx=error.ctx).show()
        return WRONG_USAGE
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has all it wants
        _drop_stdout()
        return FAILED
    except Exception as error:  # noqa: BLE001  # the boundary of the process: a user reads one line
        return _report(error, session)


def _report(error: Exception, session: Session) -> int:
    if session.debug:
        traceback.print_exception(error)
    if isinstance(error, ClipError):
        for line in str(error).splitlines():  # of a policy all faults are told
            say(f"error: {line}")
    elif isinstance(error, OSError):
        say(f"error: {error}")
    elif isinstance(error, click.ClickException):
        say(f"error: {error.format_message()}")
    elif type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        say("error: out of memory; make --batch-size smaller")
    else:
        hint = "" if session.debug else "; --debug shows where. Please report it"
        say(f"error: unexpected {type(error).__name__}: {error}{hint}")
    return WRONG_USAGE if isinstance(error, ConfigError) else FAILED


def _drop_stdout() -> None:
    """Gives stdout nowhere to go, so that the interpreter's last flush does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # a stream that is no file
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # lives as long as the process
    finally:
        os.close(nowhere)


def _foreign_clip() -> str | None:
    """What to say when another distribution has put its ``clip`` over ours, or None.

    Several do: openai/CLIP, copies of it, and a clipboard tool. Files of both then lie in one folder, and whichever was
    installed last won. A ``clip`` elsewhere on the path hides ours altogether, and this code is not reached.
    """
    if hasattr(clip, "__version__") and "load" in getattr(clip, "__all__", ()):
        return None
    from importlib.metadata import packages_distributions

    others = sorted(set(packages_distributions().get("clip", ())) - {"everyclip"})
    culprits = " and ".join(others) or "another package"
    place = printable(str(clip.__file__))
    return (
        f"{place} is not everyclip's: {culprits} also installs a package named clip; run "
        f"'pip uninstall {' '.join(others) or 'clip'}' and then 'pip install --force-reinstall --no-deps everyclip'"
    )
