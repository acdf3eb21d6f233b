"""What ``clip moderate`` does besides judging: each of its modes is an option, and a function here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click
from click.core import ParameterSource

from clip.cli import options
from clip.cli.console import Session, json_line, note, printable, progress, say
from clip.cli.pictures import STDIN, find
from clip.errors import ConfigError

if TYPE_CHECKING:
    from clip.moderation.audit import AuditLog
    from clip.moderation.moderator import Moderator
    from clip.moderation.moves import Outcome
    from clip.moderation.policy import Policy

__all__ = ["checked_mode", "log_outcome", "mode_options", "open_moderator", "policy_of"]

DONE, FAILED, NEGATIVE = 0, 1, 3

_HEADS: dict[str, bool | Literal["auto"]] = {"auto": "auto", "always": True, "never": False}

Mode = Callable[[Session, dict[str, Any]], int]


def mode_options(function: options.Function) -> options.Function:
    """The options that choose a mode, and those that only a mode has."""
    for decorate in reversed(
        (
            click.option("--undo", metavar="FOLDER", help="Take all moves into this folder back."),
            click.option("--verify-log", metavar="FILE", help="Say whether a log is whole; exit with 3 if it is not."),
            click.option(
                "--expect",
                metavar="HASH",
                help="With --verify-log: a record that has to be in it, noted when it was the last.",
            ),
            click.option(
                "--fit",
                metavar="LABELS",
                help="Learn thresholds, or more, from a CSV file of labelled pictures (- for stdin), and say how well "
                "it works for others.",
            ),
            click.option("--output", "-o", metavar="FILE", help="With --fit: where to write it, for --fitted."),
            click.option("--plot", metavar="FILE", help="With --fit: also draw it (.svg, .png)."),
            click.option(
                "--heads",
                type=click.Choice(tuple(_HEADS)),
                default="auto",
                show_default=True,
                help="With --fit: whether categories may learn from the whole embedding, too; auto: where it helps.",
            ),
            click.option(
                "--red-team", is_flag=True, help="Attack the pictures in every way known, and count what gets through."
            ),
            click.option(
                "--attack",
                "attacks",
                multiple=True,
                metavar="NAME",
                help="With --red-team: only this one, or this group; may be given several times.",
            ),
            click.option(
                "--limit",
                type=click.IntRange(min=1),
                default=200,
                show_default=True,
                metavar="N",
                help="With --red-team: pictures to attack of each kind, drawn by chance.",
            ),
            click.option(
                "--seed",
                type=int,
                default=0,
                show_default=True,
                metavar="N",
                help="With --fit and --red-team: of what is drawn by chance.",
            ),
            click.option("--policies", is_flag=True, help="List the policies that come with the package."),
            click.option("--show-policy", metavar="NAME", help="Print one of them, to begin your own with."),
        )
    ):
        function = decorate(function)
    return function


class _Allowed(NamedTuple):
    run: Mode
    with_options: frozenset[str]
    """What else may be given."""


def checked_mode(context: click.Context) -> Mode | None:
    """The mode that was asked for; None for judging. Raises UsageError for what does not go together."""
    given = [
        parameter
        for parameter in context.command.params
        if parameter.expose_value and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    modes = [parameter for parameter in given if parameter.name in _MODES]
    if len(modes) > 1:
        raise click.UsageError(f"{modes[0].opts[0]} and {modes[1].opts[0]} exclude each other; choose one")
    mode = _MODES[str(modes[0].name)] if modes else None
    for parameter in given:
        what = "PICTURES" if isinstance(parameter, click.Argument) else parameter.opts[0]
        if mode is None and (needed := _ONLY_WITH.get(str(parameter.name))):
            raise click.UsageError(f"{what} means nothing without {needed}")
        if mode is not None and parameter.name not in mode.with_options and parameter not in modes:
            raise click.UsageError(f"{what} means nothing with {modes[0].opts[0]}; leave it out")
    return mode.run if mode else None


def policy_of(name: str | None) -> Policy:
    """The policy that was asked for. There is none by default: who blocks pictures has to say why."""
    from clip.moderation.policy_file import packaged_policies, read_policy

    if name is None:
        raise click.UsageError(f"there is no policy; pass --policy FILE, or one of {', '.join(packaged_policies())}")
    return read_policy(name)


def open_moderator(
    session: Session,
    rules: Policy,
    /,
    *,
    model: str,
    device: str | None,
    precision: Any,
    views: str,
    fitted: str | None = None,
    **_: Any,
) -> tuple[Moderator, dict[str, Any]]:
    """The moderator, and what a log or a report says of it."""
    import clip
    from clip.moderation.fitted import Fitted
    from clip.moderation.views import Views

    learned = Fitted.open(fitted) if fitted is not None else None  # before the seconds that a model takes

    from clip.inference.loading import fingerprint_of, runtime_of
    from clip.moderation.moderator import Moderator

    network, preprocess = options.load_for_inference(session, model, device, precision)
    fingerprint = fingerprint_of(model)
    if learned is not None:
        try:
            learned.check(policy=rules.fingerprint, model=fingerprint, views=views)
        except ConfigError as error:
            raise ConfigError(f"{fitted}: {error}") from error
    moderator = Moderator(
        rules, network, preprocess, model_fingerprint=fingerprint, fitted=learned, views=Views.named(views)
    )
    about = {
        "everyclip": clip.__version__,
        "folder": os.getcwd(),  # noqa: PTH109  # relative paths of verdicts start here
        "policy": {"name": rules.name, "fingerprint": rules.fingerprint, "rules": rules.to_dict()},
        "fitted": learned and learned.fingerprint,
        "model": {"name": model, "fingerprint": fingerprint, "runtime": str(runtime_of(network))},
        "views": views,
    }
    return moderator, about


# Moves and log --------------------------------------------------------------------------------------------------------


def _undo(session: Session, given: dict[str, Any]) -> int:
    from clip.moderation.audit import AuditLog
    from clip.moderation.moves import undo

    audit = AuditLog(given["log"]) if given["log"] is not None else None
    restored = left = 0
    try:
        for outcome in undo(given["undo"], on_outcome=_logging_to(audit)):
            if outcome.is_done:
                restored += 1
            else:
                left += 1
                say(f"{outcome.source}: {outcome.result}: {outcome.reason}")
            if given["as_json"]:
                print(json_line(outcome.to_dict()), flush=True)
            elif outcome.is_done:
                print(f"{outcome.result}  {printable(outcome.source)}", flush=True)
    finally:
        if audit is not None:
            audit.close()
    if not session.quiet:
        say(f"{given['undo']}: {restored:,} restored, {left:,} not")
    return FAILED if left else DONE


def log_outcome(audit: AuditLog, outcome: Outcome) -> None:
    """A picture that was moved, or moved back, or was not."""
    audit.append("move" if outcome.result.endswith("moved") else "undo", outcome.to_dict(), durable=True)


def _logging_to(audit: AuditLog | None) -> Callable[[Outcome], None] | None:
    if audit is None:
        return None
    return lambda outcome: log_outcome(audit, outcome)


def _verify_log(session: Session, given: dict[str, Any]) -> int:
    from clip.moderation.audit import verify_log

    found = verify_log(given["verify_log"], expect=given["expect"])
    problem = found.problem
    if given["as_json"]:
        value = {
            "file": given["verify_log"],
            "whole": found.is_whole,
            "records": found.records,
            "events": dict(found.events),
            "head": found.head,
            "unfinished": found.is_unfinished,
            "line": problem and (problem.line or None),
            "reason": problem and problem.reason,
        }
        print(json_line(value))
        return DONE if found.is_whole else NEGATIVE
    name = printable(given["verify_log"])
    if problem is not None:
        place = f"{name}, line {problem.line}" if problem.line else name
        print(f"{place}: {problem.reason}")
        note(session, f"the {found.records:,} records before it are whole")
        return NEGATIVE
    events = ", ".join(f"{number:,} {event}" for event, number in found.events.items())
    print(f"{name}: whole, {found.records:,} records ({events}); the last is {found.head}")
    if found.is_unfinished:
        say(f"{name}: its last line is half written, by a run that was killed, or that goes on")
    return DONE


# Learning, and being attacked -----------------------------------------------------------------------------------------


def _fit(session: Session, given: dict[str, Any]) -> int:
    policy = policy_of(given["policy"])

    from clip.html_page import new_figure
    from clip.moderation.labels import read_labels

    is_stdin = given["fit"] == STDIN
    labels = read_labels(sys.stdin.buffer, policy) if is_stdin else read_labels(given["fit"], policy)
    plot = given["plot"]
    if plot is not None:
        if not plot.lower().endswith((".svg", ".png")):  # before minutes of work
            raise click.UsageError(f"--plot {plot}: name it .svg or .png")
        new_figure()

    from clip.moderation.fit_report import fit_text
    from clip.moderation.fitting import fit

    moderator, about = open_moderator(session, policy, **given)
    note(session, f"{about['model']['name']}: {about['model']['runtime']}")
    with progress(session, "Learning", lambda: len(labels.pictures)) as bar:

        def on_failure(message: str) -> None:
            with bar.paused():
                say(message)

        fitted = fit(
            moderator,
            labels,
            seed=given["seed"],
            heads=_HEADS[given["heads"]],
            batch_size=given["batch_size"],
            on_progress=bar.advance,
            on_failure=on_failure,
        )
    if given["output"] is not None:
        fitted.save(given["output"])
    print(json_line(fitted.to_dict()) if given["as_json"] else fit_text(fitted).rstrip("\n"), flush=True)
    if plot is not None:  # last, since there may be nothing to plot
        from clip.moderation.fit_plot import save_fit_figure

        save_fit_figure(fitted, plot)
    if not session.quiet:
        if given["output"] is None:
            say("nothing is kept of it; pass --output FILE, and that file as --fitted when you moderate")
        for path in (given["output"], plot):
            if path is not None:
                say(f"{path}: written")
    return DONE


def _red_team(session: Session, given: dict[str, Any]) -> int:
    policy = policy_of(given["policy"])

    from clip.moderation.attacks import ATTACKS
    from clip.moderation.red_team import chosen_attacks, red_team

    attacks = chosen_attacks(given["attacks"]) if given["attacks"] else ATTACKS
    failed: list[str] = []
    paths = list(find(given["pictures"], on_problem=failed.append))
    for message in failed:
        say(message)
    moderator, about = open_moderator(session, policy, **given)
    note(session, f"{about['model']['name']}: {about['model']['runtime']}; {len(attacks)} attacks")
    report = red_team(
        moderator,
        paths,
        attacks=attacks,
        seed=given["seed"],
        limit=given["limit"],
        batch_size=given["batch_size"],
    )
    print(json_line(report.to_dict()) if given["as_json"] else report.table())
    return FAILED if failed else DONE


# Policies -------------------------------------------------------------------------------------------------------------


def _policies(session: Session, given: dict[str, Any]) -> int:
    from clip.moderation.policy_file import packaged_policies, read_policy

    for name in packaged_policies():
        policy = read_policy(name)
        if given["as_json"]:
            print(json_line({"name": name, "fingerprint": policy.fingerprint, **policy.to_dict()}))
        else:
            print(f"{name}: {printable(' '.join(policy.description.split()))}")
    return DONE


def _show_policy(session: Session, given: dict[str, Any]) -> int:
    from clip.moderation.policy_file import policy_text

    print(policy_text(given["show_policy"]), end="")
    return DONE


_MODEL = ("policy", "model", "device", "precision", "batch_size", "views", "as_json", "seed")

_MODES = {
    "fit": _Allowed(_fit, frozenset({*_MODEL, "output", "plot", "heads"})),
    "red_team": _Allowed(_red_team, frozenset({*_MODEL, "pictures", "fitted", "attacks", "limit"})),
    "undo": _Allowed(_undo, frozenset({"as_json", "log"})),
    "verify_log": _Allowed(_verify_log, frozenset({"expect", "as_json"})),
    "policies": _Allowed(_policies, frozenset({"as_json"})),
    "show_policy": _Allowed(_show_policy, frozenset()),
}
"""By the option that asks for it."""

_ONLY_WITH = {
    "expect": "--verify-log",
    **dict.fromkeys(("output", "plot", "heads"), "--fit"),
    **dict.fromkeys(("attacks", "limit"), "--red-team"),
    "seed": "--fit or --red-team",
}
"""Options that mean nothing in judging."""
