"""`abstain rollout`: compare a new version with the stable one under real requests before it takes its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abstain.command_line import DEFAULT_STORE, HELP, AnyStoreOption, JsonOption, print_json, print_table

if TYPE_CHECKING:
    from abstain.models.bundles.remote.url import RemoteURL
    from abstain.models.bundles.rollouts import Rollout
    from abstain.models.decisions.comparison import Verdict
    from abstain.service.rollouts.state import RolloutState

commands = typer.Typer()
rollout = typer.Typer(
    help="Compare a new version with the stable one under real requests before it takes its place.",
    context_settings=HELP,
    no_args_is_help=True,
)
commands.add_typer(rollout, name="rollout")
NameArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The name of the model.")]


@rollout.command(epilog="Example: `abstain rollout start digits:7 --share 5%`")
def start(
    model: Annotated[str, typer.Argument(metavar="MODEL:VERSION", help="The candidate.")],
    share: Annotated[
        str | None,
        typer.Option(
            help="The share of callers that get the candidate, such as 5% or 0.05; all if not given, for a shadow."
        ),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Compute the same rows as the stable version; nobody gets the answers.")
    ] = False,
    margin: Annotated[
        float, typer.Option(help="The largest harmless difference of reject rates and, for a shadow, of labels.")
    ] = 0.05,
    alpha: Annotated[float, typer.Option(help="The largest probability of a false verdict.")] = 0.05,
    auto: Annotated[
        bool, typer.Option("--auto", help="Let a server promote or abort the candidate when there is a verdict.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if the candidate is damaged or failed publication checks.")
    ] = False,
    store: AnyStoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Start to compare a candidate with what requests for the model get now: as a canary, or with --shadow."""
    from abstain.models.bundles.remote.moves import start_rollout  # noqa: PLC0415
    from abstain.models.bundles.rollouts import Options  # noqa: PLC0415
    from abstain.models.errors import ConfigError  # noqa: PLC0415
    from abstain.service.rollouts.state import REJECTS_ONLY, describe_share  # noqa: PLC0415

    if share is None and not shadow:
        raise ConfigError("--share", expected="a share of the callers, such as 5%, or --shadow", found="neither")
    part = _share(share or "100%", shadow=shadow)
    _check_between("--margin", margin)
    _check_between("--alpha", alpha)
    options = Options("shadow" if shadow else "canary", part, margin, alpha, auto)
    name, started = start_rollout(store, model, options, force=force)
    if as_json:
        print_json(started.facts.model_dump())
        return
    typer.echo(
        f"{name}:{started.candidate} is a {started.mode} of {name}:{started.baseline}: {describe_share(started)}; "
        f"margin {margin:.2%}"
    )
    if started.mode == "canary":
        sys.stderr.write(f"note: {REJECTS_ONLY}\n")
    sys.stderr.write(
        f"note: running servers of this store begin within seconds; abstain rollout status {name} shows what they observe\n"
    )


@rollout.command(epilog="Example: `abstain rollout status digits`")
def status(
    model: NameArgument,
    store: AnyStoreOption = DEFAULT_STORE,
    url: Annotated[
        str | None, typer.Option(help="Ask this server instead of the store, if servers cannot write the store.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a rollout: what servers have observed, the evidence, and the verdict."""
    from abstain.models.bundles.references import parse_reference  # noqa: PLC0415
    from abstain.models.bundles.remote.rollouts import status_in  # noqa: PLC0415
    from abstain.service.rollouts.state import describe, state_of  # noqa: PLC0415

    name = parse_reference(model).name
    state = _ask(url, name) if url else state_of(status_in(store, name))
    if as_json:
        print_json(state.model_dump())
        return
    print_table(["", name], [list(row) for row in describe(name, state)])


@rollout.command(epilog="Example: `abstain rollout promote digits`")
def promote(
    model: NameArgument,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Even if the verdict is to abort, or the candidate is damaged or failed publication checks."
        ),
    ] = False,
    store: AnyStoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """End a rollout, and make the candidate stable; abstain rollback makes the earlier version stable again."""
    from abstain.models.bundles.references import parse_reference  # noqa: PLC0415
    from abstain.models.bundles.remote.moves import check_candidate  # noqa: PLC0415
    from abstain.models.bundles.remote.rollouts import running_in, status_in  # noqa: PLC0415
    from abstain.models.errors import StoreError  # noqa: PLC0415

    name = parse_reference(model).name
    running = running_in(store, name)
    if not force:
        check_candidate(store, name, running.candidate)
        comparison = status_in(store, name).comparison
        if comparison is not None and comparison.verdict == "abort":
            raise StoreError(
                f"the verdict on {name}:{running.candidate} is to abort",
                fix=f"abstain rollout status {name} says why, abstain rollout abort {name} ends it; --force promotes it all the same",
            )
        if comparison is None or comparison.verdict is None:
            sys.stderr.write("note: there is no verdict yet\n")
    _end(name, running, "promote", store, as_json)


@rollout.command(epilog="Example: `abstain rollout abort digits`")
def abort(model: NameArgument, store: AnyStoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """End a rollout; all requests get the stable version again."""
    from abstain.models.bundles.references import parse_reference  # noqa: PLC0415
    from abstain.models.bundles.remote.rollouts import running_in  # noqa: PLC0415

    name = parse_reference(model).name
    _end(name, running_in(store, name), "abort", store, as_json)


def _end(name: str, running: Rollout, verdict: Verdict, store: Path | RemoteURL, as_json: bool) -> None:
    from abstain.models.bundles.remote.copies import resolve_in  # noqa: PLC0415
    from abstain.models.bundles.remote.rollouts import end_in  # noqa: PLC0415

    ended = end_in(store, name, verdict, by="command", own_id=running.id)
    if as_json:
        print_json(ended.facts.model_dump())
        return
    _, served = resolve_in(store, name)
    typer.echo(f"the rollout of {name}:{ended.candidate} has ended: requests for {name} get {name}:{served}")
    if verdict == "promote":
        sys.stderr.write(f"note: abstain rollback {name} takes it back\n")


def _share(text: str, *, shadow: bool) -> float:
    """Parses `5%` or `0.05`."""
    from abstain.models.errors import ConfigError, clip_repr  # noqa: PLC0415

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not (0 < share < 1 or (shadow and share == 1)):
        expected = "above 0%, at most 100%" if shadow else "above 0% and below 100%"
        fix = f"write {text}% or {share / 100:g}" if 1 < share < 100 else None
        raise ConfigError("--share", expected=expected, found=clip_repr(text), fix=fix)
    return share


def _check_between(option: str, value: float) -> None:
    from abstain.models.errors import ConfigError  # noqa: PLC0415

    if not 0 < value < 1:
        raise ConfigError(option, expected="above 0 and below 1", found=value)


def _ask(url: str, name: str) -> RolloutState:
    """Returns the state of a rollout as a server sees it."""
    import os  # noqa: PLC0415

    from abstain.service.client.client import Client  # noqa: PLC0415
    from abstain.service.commands.predict_url import KEY  # noqa: PLC0415
    from abstain.service.rollouts.state import RolloutState  # noqa: PLC0415

    with Client(url, os.environ.get(KEY) or None) as client:
        return RolloutState.model_validate(client.rollout(name))
