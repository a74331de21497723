"""``inferfleet worker``: run one worker process."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any, Final, cast

import typer

from inferfleet.schemas.errors import ConfigurationError, InferfleetError
from inferfleet.schemas.settings import LogFormat, ServiceSettings, WorkerSettings, read_settings
from inferfleet.wire.draining import drain_worker
from inferfleet.wire.ordering import ordering
from inferfleet.worker.ports import EngineDeadError
from inferfleet.worker.process import run_process

ENGINES_WITHOUT_SERVERS: Final = frozenset({"simulated", "vllm"})


class WorkerEndedError(InferfleetError):
    """The worker had to exit. Its jobs are back in the queue; start it again."""


app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def worker(
    context: typer.Context,
    *,
    pool: Annotated[str | None, typer.Option(help="Pool to take jobs from.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Engine to run: vllm, openai, simulated, or an installed one."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or name.")] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Base URL of a server for the engine openai; repeatable."),
    ] = None,
    max_running: Annotated[int | None, typer.Option(help="Maximum number of concurrent jobs.")] = None,
    look_ahead: Annotated[
        int | None, typer.Option(help="Number of jobs to prefetch beyond the running ones.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port for health and metrics; 0 picks a free one.")
    ] = None,
    engine_args: Annotated[
        str | None, typer.Option(metavar="JSON", help="Engine arguments as a JSON object.")
    ] = None,
    adapters_dir: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder of LoRA adapters, which jobs name as their model."),
    ] = None,
    worker_id: Annotated[str | None, typer.Option(help="Worker id; by default host and process id.")] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="Log format: JSON lines or console text.")
    ] = None,
) -> None:
    """Run a worker until SIGTERM; then finish or hand over its running jobs.

    Each option has an environment variable, such as INFERFLEET_POOL, which the option overrides.
    """
    if context.invoked_subcommand is not None:
        for parameter in context.command.params:
            source = context.get_parameter_source(parameter.name or "")
            if source is not None and source.name == "COMMANDLINE":
                raise typer.BadParameter(
                    f"is for a worker that runs, not for `worker {context.invoked_subcommand}`: leave it out",
                    param_hint=f"'{parameter.opts[0]}'",
                )
        return
    remarks: list[str] = []
    settings = read_settings(
        WorkerSettings,
        remarks.append,
        pool=pool,
        engine=engine,
        model=model,
        base_url=",".join(base_url) if base_url else None,
        max_running=max_running,
        look_ahead=look_ahead,
        http_port=http_port,
        engine_args=json_object(engine_args),
        adapters_dir=adapters_dir,
        worker_id=worker_id,
        log_format=log_format or (LogFormat.CONSOLE if sys.stderr.isatty() else None),
    )
    if base_url and settings.engine in ENGINES_WITHOUT_SERVERS:
        raise ConfigurationError(
            f"--base-url: the engine {settings.engine!r} asks no server; add --engine openai, or leave it out"
        )
    try:
        run_process(settings, remarks=remarks)
    except EngineDeadError as error:
        raise WorkerEndedError(f"the engine died: {error}") from error


@app.command()
def drain(
    worker_id: Annotated[str, typer.Argument(metavar="WORKER", help="Worker id.")],
    *,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", "--timeout-s", metavar="SECONDS", min=0.1, help="Limit of the wait."),
    ] = 30.0,
) -> None:
    """Drain a worker, wherever it runs: it finishes or hands over its running jobs, and exits.

    Returns once the worker has begun to drain; exits with 1 if the worker does not answer in time.
    """
    if not worker_id.strip():
        raise typer.BadParameter("WORKER is empty")
    asyncio.run(_drain(read_settings(ServiceSettings), worker_id, timeout_s))


async def _drain(settings: ServiceSettings, worker_id: str, timeout_s: float) -> None:
    async with ordering(settings, name="inferfleet worker drain") as (pipeline, send):
        await drain_worker(pipeline, send, worker_id, timeout_s=timeout_s)


def json_object(text: str | None) -> dict[str, Any] | None:
    """Read ``--engine-args``."""
    if text is None:
        return None
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"--engine-args is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(
            f'--engine-args is not a JSON object like {{"max_model_len": 8192}}, but a {type(value).__name__}'
        )
    return cast("dict[str, Any]", value)
