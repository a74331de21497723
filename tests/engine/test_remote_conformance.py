"""The remote engine keeps what every engine has to keep, on vLLM's own server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
from tests.engine.conftest import ON_CPU
from tests.engine.vllm_server import RunningServer, running_server

from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.testing.engine_suite import EngineSuite
from inferfleet.worker import Engine
from inferfleet.worker.engines.openai.engine import OpenaiEngine

MAX_MODEL_LEN = 3072


class OnServer(EngineSuite):
    arguments: ClassVar[Mapping[str, Any]] = {}
    server: ClassVar[RunningServer]
    # On two cores, the server and its engine core can keep the test that reads them waiting for seconds.
    long_tokens = 2000

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def with_a_server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("vllm-server")
        model = build_tiny_model(folder / "model", max_model_len=MAX_MODEL_LEN)
        arguments = {**ON_CPU, "max_model_len": MAX_MODEL_LEN, **cls.arguments}
        running = running_server(str(model), arguments, log=folder / "log", gives_way=True)
        with asyncio.Runner() as runner:
            cls.server = runner.run(running.__aenter__())
            yield
            runner.run(running.__aexit__(None, None, None))

    def make_engine(self) -> OpenaiEngine:
        return OpenaiEngine(
            urls=[f"{self.server.address}/v1"], model="tiny", max_running=self.slots, engine_args={}
        )

    async def kill(self, engine: Engine) -> None:
        self.server.kill()


class TestText(OnServer):
    arguments: ClassVar[Mapping[str, Any]] = {"scheduling_policy": "priority"}
