"""The remote engine keeps what every engine has to keep, on a server that returns no token ids."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import pytest
from tests.forked import ForkedProcess

from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.testing.engine_suite import EngineSuite
from inferfleet.worker import Engine
from inferfleet.worker.engines.openai.engine import OpenaiEngine


class TestOnAGateway(EngineSuite):
    url: ClassVar[str]
    gateway: ClassVar[ForkedProcess]
    # On a busy machine, the worker generates while this process, which reads the answers, waits for the CPU.
    long_tokens = 2000

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def with_a_server(cls, services: Services) -> Iterator[None]:
        pool, port = f"upstream-{uuid4().hex[:8]}", free_port()
        env = {"INFERFLEET_AMQP_URL": services.amqp_url, "INFERFLEET_REDIS_URL": services.redis_url}
        worker = ["--engine", "simulated", "--engine-args", '{"speed": 10}', "--max-running", str(cls.slots)]
        commands = [
            ["worker", "--pool", pool, "--http-port", "0", *worker],
            ["gateway", "--pool", pool, "--http-port", str(port)],
        ]
        with ExitStack() as stack:
            log = stack.enter_context(Path(os.devnull).open("wb"))
            for command in commands:
                # The last one is the gateway.
                cls.gateway = ForkedProcess(command, env=env, stdout=log, stderr=log)
                stack.callback(cls.gateway.kill)
            cls.url = f"http://127.0.0.1:{port}/v1"
            yield

    def make_engine(self) -> OpenaiEngine:
        return OpenaiEngine(urls=[self.url], model="simulated", max_running=self.slots, engine_args={})

    async def kill(self, engine: Engine) -> None:
        self.gateway.send_signal(signal.SIGKILL)
