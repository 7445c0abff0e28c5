"""Commands on tuned models: deploy, deployments, undeploy, serve, chat."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import NoLedgerError, ProviderError, UsageError
from tuneport.core.terminal import JobArgument, JsonOption, YesOption, consent, escape
from tuneport.providers.job_commands import find_job

if TYPE_CHECKING:
    from tuneport.core.deployment_plan import DeploymentPlan
    from tuneport.core.deployments import Deployments
    from tuneport.core.ledger import DeploymentRecord
    from tuneport.local_backend.server import ServerConfig



class Server(StrEnum):
    """What serves on this machine."""

    auto = "auto"
    vllm = "vllm"
    light = "light"


_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400}
_COLOURS = {"ready": "green", "idle": "green", "failed": "red", "deploying": "cyan", "undeploying": "yellow", "stopped": "yellow"}


def seconds(text: str | None) -> float | None:
    """"90s", "30min", "2h" or "1.5d" in seconds. Raises UsageError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"{text!r} is no length of time", fix="write a number and a unit: 30min, 2h, 1d")
    return float(found[1]) * _SECONDS[found[2]]


def deploy(
    job: JobArgument,
    mode: Annotated[
        str | None, typer.Option("--mode", help="Bedrock: on-demand or provisioned; Fireworks: merge or addon; others have one.")
    ] = None,
    ttl: Annotated[str | None, typer.Option("--ttl", help="Undeploy after this time, e.g. 2h.")] = None,
    on: Annotated[str | None, typer.Option("--on", help="Deployment to share (several adapters on one).", metavar="DEPLOYMENT")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", min=1, help="Most replicas, or model units.")] = None,
    hardware: Annotated[str | None, typer.Option("--hardware", help="GPU, shape or configuration, in the vendor's words.")] = None,
    idle: Annotated[str | None, typer.Option("--idle", help="Scale to zero, or stop, after this time without a request.")] = None,
    commitment: Annotated[str | None, typer.Option("--commitment", help="Bedrock provisioned: 1-month or 6-month.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65_535, help="Local: port on 127.0.0.1.")] = None,
    yes: YesOption = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is made; follow it later with watch.")] = False,
) -> None:
    """Serve a job's tuned model.

    Shows the price per hour and per month and asks first; stays within the budget of the job's spec.
    """
    from tuneport.core.deployment import DeploymentRequest

    handle, console = find_job(job), terminal.console()
    model, ours = handle.model, _ours()
    reason = ours.needless(handle.id)
    if reason:
        console.print(f"{escape(reason)}; call it as [bold]{escape(model.name)}[/]", highlight=False)
        return
    ttl_s = seconds(ttl)
    request = DeploymentRequest(mode, replicas, hardware, seconds(idle), ttl_s, commitment, port)
    plan = ours.plan(handle.id, request, on=on)
    ours.check_budget(handle.record, plan, ttl_s)
    _show_plan(plan, ttl_s)
    if plan.usd_per_hour is None or plan.usd_per_hour.high > 0:
        consent(f"Deploy {handle.id} for {_per_hour(plan)}?", yes, "deploying what bills by the hour")
    record = ours.deploy(handle.id, plan, ttl_s=ttl_s, on=on)
    at = f" as {escape(record.ref)}" if record.ref else ""
    console.print(f"deployment [bold]{record.id}[/] is {record.state} at {record.provider}{at}", highlight=False)
    if detach:
        console.print(f"follow it with: tuneport watch {record.id}")
        return
    follow(ours, record.id, stay=False)


def deployments(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are gone.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh/--no-refresh", help="Ask each provider how they are.")] = True,
    keep: Annotated[bool, typer.Option("--watch", help="Stay until every one with a --ttl is undeployed.")] = False,
    at: Annotated[
        str | None, typer.Option("--at", help="All that stands in the account there, known to this ledger or not.", metavar="PROVIDER")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what is deployed and what it costs.

    Undeploys what has outlived its --ttl.
    """
    if at is not None:
        _show_account(at, as_json)
        return
    try:
        ours = _ours()
    except NoLedgerError:
        if as_json:
            terminal.print_json([])
        else:
            terminal.console().print("nothing is deployed")
        return
    _sweep(ours)
    found = ours.latest(standing=not everything)
    if refresh:
        found = [ours.refresh(record.id) if record.state.standing else record for record in found]
        found = [record for record in found if everything or record.state.standing]
    now = datetime.now(UTC)
    if as_json:
        terminal.print_json([_facts(record, now) for record in found])
    elif not found:
        terminal.console().print("nothing is deployed")
    else:
        _show(found, now)
    if keep:
        ours.keep(_say)


def undeploy(
    names: Annotated[
        list[str] | None, typer.Argument(help="Deployment ids, or jobs whose deployments are meant.", metavar="DEPLOYMENT...")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that stand.")] = False,
) -> None:
    """Take deployments down.

    Waits until the provider says that they are gone; harmless on those that are.
    """
    from tuneport import engine

    if everything == bool(names):
        raise UsageError("what to undeploy is not clear", fix="name deployments or jobs, or give --all")
    ours = engine(create=False).deployments
    wanted: list[DeploymentRecord] = ours.latest() if everything else []
    for name in names or ():
        wanted += [ours.get(name)] if name.startswith("d-") else ours.latest(job_id=find_job(name).id)
    late = []
    for record in sorted({one.id: one for one in wanted}.values(), key=lambda one: one.stands_on is None):
        gone = ours.undeploy(record.id)
        cost = gone.cost_usd(datetime.now(UTC))
        cost_told = f"; it has cost {terminal.usd_range(cost.low, cost.high)}" if cost is not None and cost.high > 0 else ""
        terminal.console().print(f"{gone.id} {gone.state} at {gone.provider}{cost_told}", highlight=False)
        late += [gone.id] if gone.state.standing else []
    if not wanted:
        terminal.console().print("nothing is deployed")
    if late:
        what = f"{', '.join(late)}: taking down has begun but is not confirmed, and may still bill"
        raise ProviderError(what, fix=f"ask again: tuneport undeploy {' '.join(late)}", retry="no")


def chat(
    job: JobArgument,
    question: Annotated[
        str | None, typer.Argument(help="What to ask; read from standard input when left out.", metavar="QUESTION")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of the answer.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Ask a job's tuned model a question.

    An answer that reaches --max-tokens is cut there, and the command says so.
    """
    text = question if question is not None else sys.stdin.read().strip()
    if not text:
        raise UsageError("there is no question", fix='write it behind the job: tuneport chat JOB "..."')
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
    handle = find_job(job)
    with terminal.waiting(f"asking {handle.id} at {handle.provider} for at most {max_tokens} tokens (--max-tokens)"):
        reply = handle.model.chat(messages, max_tokens=max_tokens)
    if as_json:
        terminal.print_json(terminal.plain(reply))
    else:
        print(reply.text)
    if reply.completion_tokens is not None and reply.completion_tokens >= max_tokens:
        more = f"ask again with --max-tokens {2 * max_tokens} for more"
        typer.echo(f"the answer reached the limit of {max_tokens} tokens and may be cut short; {more}", err=True)


def serve(
    names: Annotated[
        list[str], typer.Argument(help="Local jobs, or exported adapters (folders, archives), on one base.", metavar="JOB|PATH...")
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8000,
    ttl: Annotated[str | None, typer.Option("--ttl", help="End after this time, e.g. 2h.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="Base model, where an exported adapter names it in a vendor's words.")] = None,
    server: Annotated[Server, typer.Option("--server", help="auto: vLLM where it is installed and there is a GPU.")] = Server.auto,
    add: Annotated[bool, typer.Option("--add", help="Load these into the vLLM server that runs on --port.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Unload these from the vLLM server that runs on --port.")] = False,
) -> None:
    """Serve local jobs on loopback, as OpenAI does.

    Runs in this terminal until Ctrl-C. Several adapters of one base are served together, each under its job's id or its file's name.
    """
    from tuneport.local_backend import vllm_server
    from tuneport.local_backend.server import serve as serve_light

    if add and remove:
        raise UsageError("--add and --remove exclude each other", fix="give one of them")
    console = terminal.console()
    if remove:
        left = vllm_server.remove(port, [_called(name) or find_job(name).id for name in names])
        console.print(f"http://127.0.0.1:{port}/v1 serves {', '.join(left)}", highlight=False)
        return
    config = _served(names, base, port, seconds(ttl))
    if add:
        console.print(f"http://127.0.0.1:{port}/v1 serves {', '.join(vllm_server.add(port, config))}", highlight=False)
        return

    def ready(at: int) -> None:
        told = ", ".join(one.name for one in config.models)
        console.print(f"http://127.0.0.1:{at}/v1 serves {told}; Ctrl-C ends it", highlight=False)

    by_vllm, why = vllm_server.choose(server.value, config)
    console.print(escape(why), highlight=False)
    if by_vllm:
        vllm_server.serve(config, on_ready=ready)
    else:
        serve_light(config, on_ready=ready)


def _called(name: str) -> str | None:
    """What an exported adapter is called by; None for the name of a job."""
    return Path(name).name.partition(".tar")[0] if Path(name).exists() else None


def _served(names: list[str], base: str | None, port: int, ttl_s: float | None) -> ServerConfig:
    """What is to be served: jobs of the ledger and exported adapters. Raises UsageError when they do not share one base."""
    from tuneport.local_backend.server import ServedModel, ServerConfig
    from tuneport.providers.local.client import LocalProvider

    answering: dict[str, dict[str, Any]] = {}
    for name in names:
        if own := _called(name):
            answering[own] = LocalProvider().answering(f"local:{Path(name).absolute()}")
            continue
        handle = find_job(name)
        if handle.provider != "local":
            what = f"job {handle.id} was trained at {handle.provider}, and only what lies on this machine is served here"
            raise UsageError(what, fix=f"tuneport deploy {handle.id}, or tuneport export {handle.id} and serve the folder")
        answering[handle.id] = LocalProvider(handle.spec.options.local).answering(handle.model.name)
    bases = {(base or one["model"], one["device"], one["dtype"], one["trust_remote_code"]) for one in answering.values()}
    if len(bases) > 1:
        what = "these do not share one base model, device, precision and trust_remote_code"
        raise UsageError(what, fix="serve each by itself, on a port of its own")
    model, device, dtype, trust = bases.pop()
    served = [ServedModel(name=name, adapter=one["adapter"], chat_template=one["chat_template"]) for name, one in answering.items()]
    return ServerConfig(base=model, device=device, dtype=dtype, trust_remote_code=trust, models=tuple(served), port=port, ttl_s=ttl_s)


def follow(ours: Deployments, deployment_id: str, *, stay: bool) -> None:
    """Wait until a deployment serves; with ``stay`` also until its time is up, and take it down then."""
    console, last = terminal.console(), ""

    def show(record: DeploymentRecord) -> None:
        nonlocal last
        said = f"{record.state} {record.raw_state} {record.message}"
        if said != last:
            last = said
            why = f": {escape(record.message)}" if record.message else ""
            word = f" ({escape(record.raw_state)})" if record.raw_state else ""
            console.print(f"[dim]{record.updated_at:%H:%M:%S}[/] {record.id} {record.state}{word}{why}", highlight=False)

    record = ours.wait(deployment_id, show)
    name = escape(record.call_as or "")
    console.print(f'[green]✓[/] {record.id} serves as [bold]{name}[/]: tuneport chat {record.job_id} "..."', highlight=False)
    if record.expires_at is None:
        return
    if stay:
        ours.keep(_say)
        return
    who = "it ends by itself" if record.provider == "local" else "a running tuneport undeploys it"
    fix = "" if record.provider == "local" else f" (tuneport watch {record.id}, or the next `tuneport deployments`)"
    console.print(f"at {record.expires_at:%Y-%m-%d %H:%M} UTC {who}{fix}", highlight=False)


def _show_account(name: str, as_json: bool) -> None:
    """What stands at a provider, whoever made it, beside this ledger's ids: nothing that bills stays out of sight."""
    from tuneport.core.reading import offered
    from tuneport.providers import registry

    there = list(offered(registry.get(name), "deployments").deployments().list_deployments())
    known: dict[str | None, str] = {}
    with suppress(NoLedgerError):
        known = {record.ref: record.id for record in _ours().latest()}
    if as_json:
        terminal.print_json([terminal.plain(one) | {"id": known.get(one.ref)} for one in there])
        return
    listing = terminal.table("at the provider", "state", "USD per hour", "in this ledger")
    for one in there:
        price = one.usd_per_hour
        told = "unknown" if price is None else terminal.usd_range(price.low, price.high)
        listing.add_row(one.ref, f"{one.state} ({one.raw_state})", told, known.get(one.ref, "[yellow]no[/]"))
    terminal.console().print(listing if there else f"nothing stands at {name}")


def _ours() -> Deployments:
    from tuneport import engine

    return engine(create=False).deployments


def _sweep(ours: Deployments) -> None:
    for expired in ours.sweep():
        record = expired.record
        why = f" [yellow]({escape(str(expired.error))})[/]" if expired.error else ""
        terminal.console().print(f"{record.id} has outlived its time and is {record.state}{why}", highlight=False)


def _say(record: DeploymentRecord) -> None:
    terminal.console().print(f"[dim]{datetime.now(UTC):%H:%M:%S}[/] {record.id} {record.state}", highlight=False)


def _per_hour(plan: DeploymentPlan) -> str:
    usd = plan.usd_per_hour
    return "an unknown price" if usd is None else f"{terminal.usd_range(usd.low, usd.high)} per hour"


def _show_plan(plan: DeploymentPlan, ttl_s: float | None) -> None:
    console, usd, month = terminal.console(), plan.usd_per_hour, plan.usd_per_month
    console.print(f"{plan.provider} will serve [bold]{escape(plan.model)}[/] by {plan.mode}", highlight=False)
    price = _per_hour(plan) if month is None else f"{_per_hour(plan)}, {terminal.usd_range(month.low, month.high)} per month of 730 h"
    console.print(f"  {price}: {escape(plan.price)}", highlight=False)
    if usd is not None and usd.high > 0 and (ttl_s or plan.committed_hours):
        hours = max((ttl_s or 0) / 3600, plan.committed_hours)
        console.print(f"  at most {terminal.usd(usd.high * hours)} in {hours:g} h", highlight=False)
    for note in plan.notes:
        console.print(f"[yellow]![/] {escape(note)}", highlight=False)


def _show(found: list[DeploymentRecord], now: datetime) -> None:
    from rich.text import Text

    columns = ("deployment", "job", "provider", "mode", "state", "USD per hour", "cost so far", "undeployed at (UTC)", "call as")
    listing = terminal.table(*columns)
    hourly = [0.0, 0.0]
    for record in found:
        price, cost = record.usd_per_hour, record.cost_usd(now)
        if price is not None and record.state.standing:
            hourly = [hourly[0] + (0.0 if record.may_idle else price.low), hourly[1] + price.high]
        listing.add_row(
            record.id, record.job_id, record.provider, record.mode, Text(str(record.state), _COLOURS.get(str(record.state), "")),
            "unknown" if price is None else terminal.usd_range(price.low, price.high),
            "unknown" if cost is None else terminal.usd_range(cost.low, cost.high),
            f"{record.expires_at:%Y-%m-%d %H:%M}" if record.expires_at else "–", record.call_as or "–",
        )  # fmt: skip
    terminal.console().print(listing)
    if hourly[1] > 0:
        terminal.console().print(f"all together {terminal.usd_range(*hourly)} per hour while they run", highlight=False)
    for record in found:
        said = record.freshness(now) or (record.message if record.state.value in ("failed", "stopped", "undeploying") else "")
        if said:
            terminal.console().print(f"[yellow]![/] {record.id}: {escape(said)}", highlight=False)


def _facts(record: DeploymentRecord, now: datetime) -> dict[str, Any]:
    price, cost = record.usd_per_hour, record.cost_usd(now)
    return {
        "id": record.id, "job": record.job_id, "provider": record.provider, "model": record.model, "mode": record.mode,
        "state": str(record.state), "raw_state": record.raw_state or None, "ref": record.ref, "call_as": record.call_as,
        "message": record.message or None, "stands_on": record.stands_on,
        "usd_per_hour": None if price is None else [price.low, price.high], "cost_usd": None if cost is None else [cost.low, cost.high],
        "created_at": record.created_at.isoformat(), "ready_at": record.ready_at.isoformat() if record.ready_at else None,
        "expires_at": record.expires_at.isoformat() if record.expires_at else None,
        "ended_at": record.ended_at.isoformat() if record.ended_at else None, "freshness": record.freshness(now) or None,
    }  # fmt: skip

