"""``inferfleet model``: change the model of running workers, probe a model, and look at those on disk."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
import typer

from inferfleet.cli.model_files import list_models, verify
from inferfleet.cli.options import JsonFlag, live_pools, none_empty, not_empty
from inferfleet.cli.terminal import err, line, out
from inferfleet.schemas.control import SwapModel, SwapStrategy
from inferfleet.schemas.errors import InferfleetError, UnknownPoolError
from inferfleet.schemas.model_swap import ModelSwap
from inferfleet.schemas.settings import LogFormat, ServiceSettings, WorkerSettings, read_settings
from inferfleet.wire.ordering import ordering
from inferfleet.wire.redis.heartbeats import read_heartbeats
from inferfleet.wire.swapping import LEASE_S, Swapping
from inferfleet.worker.cli import json_object
from inferfleet.worker.engine_factory import make_engine
from inferfleet.worker.log import logging_to_stderr
from inferfleet.worker.ports import EngineDeadError
from inferfleet.worker.probe import ProbeFailedError, ProbeResult, probe

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command("list")(list_models)
app.command()(verify)

SLEEP = (
    "there is no strategy 'sleep': a model that wakes from vLLM's sleep may have lost its weights or "
    "adapters without an error. Use side-by-side, or restart if the memory does not hold both models"
)


class UnfitModelError(InferfleetError):
    """The model has failed its probe, or its engine died. The message says why."""


@app.callback()
def model() -> None:
    """Change the model of running workers, and look at models."""


def _strategy(value: str) -> str:
    if value == "sleep":
        raise typer.BadParameter(SLEEP)
    if value not in {*SwapStrategy}:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(SwapStrategy)}")
    return value


@app.command()
def swap(
    *,
    pool: Annotated[
        str,
        typer.Option(help="Pool of the workers.", callback=not_empty, autocompletion=live_pools),
    ],
    model: Annotated[str, typer.Option(help="The new model: a folder or a name.", callback=not_empty)],
    engine_args: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="Engine arguments as a JSON object; by default each worker's current ones."
        ),
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option(help="Worker to change; repeatable. All of the pool by default.", callback=none_empty),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            metavar="|".join(SwapStrategy),
            help="Load the new model beside the old one, or unload the old one first.",
            callback=_strategy,
        ),
    ] = SwapStrategy.SIDE_BY_SIDE,
    max_unavailable: Annotated[
        int, typer.Option(min=1, help="How many workers of the pool may be swapping or not ready at once.")
    ] = 1,
    drain_timeout_s: Annotated[
        float | None,
        typer.Option(
            "--drain-timeout",
            "--drain-timeout-s",
            metavar="SECONDS",
            min=0,
            help="Limit for running answers to end on the old model; by default the worker's drain timeout.",
        ),
    ] = None,
    probe_hash: Annotated[
        str | None,
        typer.Option(help="Required hash of the probe (see `inferfleet model probe`).", callback=not_empty),
    ] = None,
    max_perplexity: Annotated[
        float | None, typer.Option(min=1, help="Highest accepted perplexity of the probe's text.")
    ] = None,
    allow_rename: Annotated[
        bool, typer.Option("--allow-rename", help="Accept a model with another served name.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Replace the model of running workers, one after the other, without failing a job.

    Each worker loads the new model, probes it and switches to it; if anything fails it keeps the old one, and
    no further worker begins. Change the deployment, too: a worker that restarts loads the model
    that its environment names.
    """
    orders = Orders(
        pool=pool,
        workers=worker,
        max_unavailable=max_unavailable,
        fields={
            "model": model,
            "engine_args": json_object(engine_args),
            "strategy": SwapStrategy(strategy),
            "drain_timeout_s": drain_timeout_s,
            "probe_hash": probe_hash,
            "max_perplexity": max_perplexity,
            "allow_rename": allow_rename,
        },
    )
    ended = dict[str, ModelSwap]()
    try:
        asyncio.run(_swap(read_settings(ServiceSettings), orders, ended, as_json=as_json))
    finally:
        if as_json:
            out(
                orjson.dumps({name: its.model_dump(mode="json") for name, its in ended.items()}).decode()
                + "\n"
            )


@app.command("probe")
def probe_(
    *,
    model: Annotated[str | None, typer.Option(help="Model folder or name.")] = None,
    engine: Annotated[str | None, typer.Option(metavar="NAME", help="Engine to run.")] = None,
    engine_args: Annotated[
        str | None, typer.Option(metavar="JSON", help="Engine arguments as a JSON object.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Load a model in this process, probe it, and print the hash for `model swap --probe-hash`.

    It needs the memory for the model, but neither RabbitMQ nor Redis. Exits with 1 if the model is not fit.
    """
    settings = read_settings(
        WorkerSettings,
        model=model,
        engine=engine,
        engine_args=json_object(engine_args),
        log_format=LogFormat.CONSOLE,
    )
    with logging_to_stderr(settings, worker_id="probe"):
        found = asyncio.run(_probe(settings))
    if as_json:
        fields = {"hash": found.hash, "perplexity": found.perplexity}
        out(orjson.dumps(fields).decode() + "\n")
        return
    out(f"{found.hash or 'no hash: the model generates no text'}\n")
    if found.perplexity is not None:
        err(f"inferfleet: the perplexity of the probe's text is {found.perplexity:.1f}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the command orders, and of whom. ``workers`` of ``None`` are all of the pool."""

    pool: str
    workers: list[str] | None
    max_unavailable: int
    fields: dict[str, Any]


async def _swap(
    settings: ServiceSettings, orders: Orders, ended: dict[str, ModelSwap], *, as_json: bool
) -> None:
    def tell(worker_id: str, swap: ModelSwap) -> None:
        ended[worker_id] = swap
        if not as_json:
            out(f"{line(worker_id)}  {_progress(swap)}\n")

    async with ordering(settings, name="inferfleet model swap", patience_s=LEASE_S) as (pipeline, send):
        alive = [it for it in await read_heartbeats(pipeline) if it.pool == orders.pool]
        if not alive:
            raise UnknownPoolError(f"pool {orders.pool!r} has no live worker whose model can be swapped")
        names = dict.fromkeys(orders.workers or [it.worker_id for it in alive])
        swapping = Swapping(pipeline, send, tell, pool=orders.pool, max_unavailable=orders.max_unavailable)
        await swapping.run(
            [SwapModel(swap_id=uuid.uuid4().hex, worker_id=name, **orders.fields) for name in names]
        )


def _progress(swap: ModelSwap) -> str:
    match swap:
        case ModelSwap(state="rolled_back"):
            return f"rolled back: {line(swap.reason)}"
        case ModelSwap(state="switched", busy=False):
            without = f", {swap.without_service_s:.1f} s without service" if swap.without_service_s else ""
            return f"done, probe hash {swap.probe_hash or 'none'}{without}"
        case ModelSwap(state="switched"):
            return "switched; running answers end on the old model"
        case _:
            return str(swap.state)


async def _probe(settings: WorkerSettings) -> ProbeResult:
    engine = make_engine(settings)
    try:
        await engine.start()
        return await probe(engine)
    except (EngineDeadError, ProbeFailedError) as error:
        raise UnfitModelError(f"the model {engine.model!r} is not fit: {error}") from error
    finally:
        await engine.stop()
