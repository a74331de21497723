"""vLLM's own OpenAI server as a process, and what it answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.forked import ForkedProcess

from inferfleet.local.services.free_port import free_port
from inferfleet.worker.engines.vllm.plugin import WORKER_PID_VARIABLE

LOADING_S = 600.0
"""Several engines at once load slowly on a busy machine."""

ANSWERING_S = 300.0

GIVE_WAY = """
import os
from pathlib import Path
# Linux weighs sessions, too.
os.nice(10)
autogroup = Path("/proc/self/autogroup")
if autogroup.exists():
    autogroup.write_text("10")
"""

RUN_SERVER = """
import runpy
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
raise SystemExit
"""


@dataclass(frozen=True)
class RunningServer:
    """``client`` has the server's address as its base."""

    client: httpx.AsyncClient
    process: ForkedProcess

    @property
    def address(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def kill(self) -> None:
        """End it and its engine core at once."""
        os.killpg(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def vllm_server(
    model: str, arguments: Mapping[str, Any], *, log: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """Run the server until the end of the block; the client's base is its address."""
    async with running_server(model, arguments, log=log) as server:
        yield server.client


@asynccontextmanager
async def running_server(
    model: str, arguments: Mapping[str, Any], *, log: Path, port: int | None = None, gives_way: bool = False
) -> AsyncIterator[RunningServer]:
    """Run the server until the end of the block, unless it is killed before.

    It is forked from a process that has imported vLLM, and runs the module of the command ``vllm serve``. One
    that ``gives_way`` does not keep its readers from the CPU until its answers are over.
    """
    port = port or free_port()
    options = [word for name, value in arguments.items() for word in _option(name, value)]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING"}
    # An engine of this process sets it. The plugin would take the server for its engine core.
    environment.pop(WORKER_PID_VARIABLE, None)
    # In a session of its own, so that the engine core that it starts can be ended with it.
    with log.open("wb") as output:
        server = ForkedProcess(
            ("--model", model, "--host", "127.0.0.1", "--port", str(port), *options),
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
            preamble=GIVE_WAY + RUN_SERVER if gives_way else RUN_SERVER,
            may_start_others=True,
        )
    try:
        # Each request on a connection of its own: the server closes idle ones while engines load here.
        limits = httpx.Limits(max_keepalive_connections=0)
        address = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=address, timeout=ANSWERING_S, limits=limits) as client:
            await _until_ready(client, server, log)
            yield RunningServer(client, server)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        await server.wait()


async def stream_of_server(
    client: httpx.AsyncClient, endpoint: str, body: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """Read the events of a stream to its end; ``None`` if it is refused."""
    async with client.stream("POST", endpoint, json={**body, "stream": True}) as response:
        if response.status_code != httpx.codes.OK:
            return None
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [option, str(value)]


async def _until_ready(client: httpx.AsyncClient, server: ForkedProcess, log: Path) -> None:
    async with asyncio.timeout(LOADING_S):
        while True:
            assert server.returncode is None, log.read_text()[-4000:]
            try:
                if (await client.get("/health")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
