"""``clip moderate``: pictures and a policy → verdicts, and what follows. The other modes: ``moderate_modes``."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from clip.cli import moderate_modes, options
from clip.cli.console import Progress, Session, json_line, note, printable, progress, rounded, say
from clip.cli.pictures import STDIN, count, find

if TYPE_CHECKING:
    from clip.moderation.audit import AuditLog
    from clip.moderation.moderator import Moderator
    from clip.moderation.moves import BlockedFolder, Outcome
    from clip.moderation.policy import Policy
    from clip.moderation.verdict import Verdict

__all__ = ["command"]

DONE, FAILED, NEGATIVE = 0, 1, 3

VIEWS = ("fast", "standard", "thorough")
"""Those of ``clip.moderation.views``, which imports NumPy."""


@options.verb(
    "moderate",
    example="""
clip moderate uploads/ --policy restricted-goods
clip moderate uploads/ --policy ours.yaml --move-blocked blocked/ --log moderation.jsonl
clip moderate --undo blocked/
find / -name "*.jpg" | clip moderate - --policy ours.yaml --json
clip moderate --fit labels.csv --policy ours.yaml
""",
)
@click.argument("pictures", nargs=-1, metavar="[PICTURES...]")
@click.option(
    "--policy", metavar="POLICY", help="Name from --policies, or a file (YAML): what pictures are held against."
)
@options.json_output("One JSON object a line for each picture.")
@click.option("--csv", "as_csv", is_flag=True, help="A CSV table, one row for each picture.")
@click.option("--html", metavar="FILE", help="Also write a page on which a person can look at them and decide.")
@click.option("--move-blocked", metavar="FOLDER", help="Move the pictures that are blocked there; see --undo.")
@click.option("--check", is_flag=True, help="Exit with 3 if any picture is blocked.")
@click.option("--log", metavar="FILE", help="Add what was decided and done to a log that shows if it is changed later.")
@click.option(
    "--views",
    type=click.Choice(VIEWS),
    default="standard",
    show_default=True,
    help="How closely to look: parts of each picture, frames, what is hidden. Each takes several times as long as the "
    "one before.",
)
@click.option("--fitted", metavar="FILE", help="What --fit has learned from labelled pictures.")
@moderate_modes.mode_options
@options.model_options
@options.batch_size(32)
def command(session: Session, **given: Any) -> int:
    """Hold pictures against a policy: allow, flag or block.

    PICTURES are files, folders (searched with the folders inside), quoted patterns, or - for a list of paths on stdin,
    each of which is answered as it comes. Each verdict names the category whose score is furthest above its threshold,
    or nearest below. A score is not a fact: look at what is flagged, and fit the policy to pictures of your own.

    Originals are never changed. With --move-blocked they are moved, if they still are what was judged, and each move is
    written down before it is made, so that --undo takes it back, even if the process was killed. Symbolic links are
    not moved.

    A file that is no picture gets what the policy says of unreadable files. The exit status is 1 if there was no file
    to read, or a picture could not be moved.
    """
    mode = moderate_modes.checked_mode(click.get_current_context())
    if mode is not None:
        return mode(session, given)
    return _moderate(session, **given)


def _moderate(
    session: Session,
    *,
    pictures: tuple[str, ...],
    policy: str | None,
    as_json: bool,
    as_csv: bool,
    html: str | None,
    move_blocked: str | None,
    check: bool,
    log: str | None,
    batch_size: int,
    **given: Any,
) -> int:
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other; choose one")
    if not pictures:
        raise click.UsageError("there is nothing to moderate; name pictures, folders, or - for a list on stdin")

    from clip.moderation.audit import AuditLog
    from clip.moderation.moves import BlockedFolder

    rules = moderate_modes.policy_of(policy)
    with contextlib.ExitStack() as stack:
        audit = stack.enter_context(AuditLog(log)) if log is not None else None  # before the seconds of a model
        moderator, about = moderate_modes.open_moderator(session, rules, **given)
        note(session, f"{about['model']['name']}: {about['model']['runtime']}")
        run = _Run(session, moderator, audit, _json(move_blocked) if as_json else _csv() if as_csv else _table(rules))
        stack.enter_context(run.logged(about))
        if move_blocked is not None:
            run.blocked = stack.enter_context(BlockedFolder(move_blocked, on_outcome=run.on_outcome))
        with progress(session, "Moderating", lambda: count(pictures)) as bar:
            verdicts = run.verdicts(pictures, batch_size, bar)
            if html is None:
                for _ in verdicts:
                    pass
            else:
                from clip.html_page import write_atomically
                from clip.moderation.review_page import review_page

                write_atomically(html, review_page(verdicts, rules, contents=run.where_it_is))
    run.summarize(html)
    if run.failed:
        return FAILED
    return NEGATIVE if check and run.actions["block"] else DONE


@dataclasses.dataclass(slots=True)
class _Run:
    """From paths to lines on stdout, records in the log, and moves."""

    session: Session
    moderator: Moderator
    audit: AuditLog | None
    write: Callable[[Verdict, Outcome | None], None]
    blocked: BlockedFolder | None = None
    actions: Counter[str] = dataclasses.field(default_factory=Counter)
    moved: dict[str, str] = dataclasses.field(default_factory=dict)
    """Path as it was given → where it is now."""
    failed: int = 0

    def verdicts(self, pictures: tuple[str, ...], batch_size: int, bar: Progress) -> Iterator[Verdict]:
        """Each is printed, logged and followed before the next is asked for."""

        def fail(message: str) -> None:
            self.failed += 1
            with bar.paused():
                say(message)

        for paths in _groups(pictures, fail):
            wanted = (path for path in paths if self.blocked is None or path not in self.blocked)
            for verdict in self.moderator.moderate(wanted, batch_size=batch_size):
                self.actions[verdict.action] += 1
                outcome = self._follow(verdict)
                if verdict.error is not None:
                    with bar.paused():
                        say(verdict.error)
                    self.failed += verdict.sha256 is None
                if outcome is not None and not outcome.is_done:
                    fail(f"{verdict.path}: is not moved: {outcome.reason}")
                with bar.paused():
                    self.write(verdict, outcome)
                    sys.stdout.flush()
                bar.advance(1)
                yield verdict

    def _follow(self, verdict: Verdict) -> Outcome | None:
        """What the action asks for. A verdict is on the disk before anything moves because of it."""
        is_to_move = self.blocked is not None and verdict.action == "block"
        if self.audit is not None:
            self.audit.append("verdict", verdict.to_dict(), durable=is_to_move)
        if self.blocked is None or not is_to_move:
            return None
        outcome = self.blocked.move(verdict)
        if outcome.destination is not None and outcome.is_done:
            self.moved[verdict.path] = outcome.destination
        return outcome

    def on_outcome(self, outcome: Outcome) -> None:
        if self.audit is not None:
            moderate_modes.log_outcome(self.audit, outcome)

    def where_it_is(self, path: str) -> str:
        return self.moved.get(path, path)

    @contextlib.contextmanager
    def logged(self, about: dict[str, Any]) -> Iterator[None]:
        """The records of a run's start and end, however it ends."""
        if self.audit is None:
            yield
            return
        self.audit.append("start", about)
        is_whole = False
        try:
            yield
            is_whole = True
        finally:
            counts = {action: self.actions[action] for action in ("allow", "flag", "block")}
            contents = {**counts, "moved": len(self.moved), "failed": self.failed, "interrupted": not is_whole}
            self.audit.append("end", contents, durable=True)

    def summarize(self, html: str | None) -> None:
        if self.blocked is not None:
            for outcome in self.blocked.recovered:
                say(f"{outcome.source}: {outcome.result}: {outcome.reason}")
        if self.session.quiet:
            return
        total = self.actions.total()
        counts = ", ".join(f"{self.actions[action]:,} {word}" for action, word in _WORDS.items())
        policy = self.moderator.policy
        say(
            f"{total:,} {'picture' if total == 1 else 'pictures'}: {counts}; by policy {policy.name} "
            f"({policy.fingerprint[:12]})"
        )
        if self.moved and self.blocked is not None:
            say(f"{len(self.moved):,} moved to {self.blocked.folder}; clip moderate --undo takes them back")
        if self.audit is not None:
            say(f"{self.audit.path}: its last record is {self.audit.head}")
        if html is not None:
            say(f"{html}: written; open it in a browser")


_WORDS = {"block": "blocked", "flag": "flagged", "allow": "allowed"}


def _groups(pictures: tuple[str, ...], on_problem: Callable[[str], None]) -> Iterator[Iterable[str]]:
    """Paths that are moderated together: those on stdin only with what is there already, since who writes them may wait
    for an answer before the next."""
    for is_stdin, arguments in itertools.groupby(pictures, lambda argument: argument == STDIN):
        if is_stdin:
            yield from _lines_as_they_come()
        else:
            yield find(list(arguments), on_problem=on_problem)


_READ_BYTES = 1 << 16


def _lines_as_they_come() -> Iterator[list[str]]:
    """The lines of stdin, in lists of those that can be read without waiting. A file name need not be UTF-8."""
    rest = b""
    stdin: Any = sys.stdin.buffer  # a BufferedReader, says the documentation
    while data := stdin.read1(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        yield [os.fsdecode(name) for line in lines if (name := line.rstrip(b"\r"))]
    if rest:
        yield [os.fsdecode(rest)]


# How verdicts are printed ---------------------------------------------------------------------------------------------

Write = Callable[["Verdict", "Outcome | None"], None]


def _json(move_blocked: str | None) -> Write:
    def write(verdict: Verdict, outcome: Outcome | None) -> None:
        value = verdict.to_dict()
        if move_blocked is not None:
            value["moved_to"] = outcome.destination if outcome is not None and outcome.is_done else None
        print(json_line(value))

    return write


_COLUMNS = (
    *("path", "action", "category", "score", "threshold", "severity", "prompt", "view", "exemption", "notes", "error"),
    *("sha256", "moved_to"),
)


def _csv() -> Write:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(_COLUMNS)

    def write(verdict: Verdict, outcome: Outcome | None) -> None:
        row: dict[str, Any] = {"path": verdict.path, "action": verdict.action, "sha256": verdict.sha256}
        row |= {"error": verdict.error, "notes": "; ".join(verdict.notes)}
        if verdict.findings:
            nearest = verdict.findings[0]
            row |= {
                "category": nearest.category,
                "score": rounded(nearest.score),
                "threshold": rounded(nearest.threshold),
            }
            row |= {"severity": nearest.severity, "prompt": nearest.prompt, "view": nearest.view}
            row |= {"exemption": nearest.exemption}
        row["moved_to"] = outcome.destination if outcome is not None and outcome.is_done else None
        table.writerow(row.get(name) for name in _COLUMNS)

    return write


_COLOURS = {"block": "red", "flag": "yellow"}


def _table(policy: Policy) -> Write:
    """Aligned, with the path last, since it may be of any length."""
    width = max(len(category.name) for category in policy.categories)
    is_coloured = sys.stdout.isatty()

    def write(verdict: Verdict, outcome: Outcome | None) -> None:
        action = f"{verdict.action:<5}"
        if is_coloured:
            action = click.style(action, fg=_COLOURS.get(verdict.action))
        category, score = "", " " * 12
        if verdict.findings:
            nearest = verdict.findings[0]
            category = nearest.category
            score = f"{nearest.score:.2f} {'>=' if nearest.is_hit else '< '} {nearest.threshold:.2f}"
        print(f"{action}  {category:<{width}}  {score}  {printable(verdict.path)}")

    return write
