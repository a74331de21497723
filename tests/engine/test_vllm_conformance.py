"""vLLM keeps what every engine has to keep."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from typing import Any

import pytest
from tests.engine.conftest import ON_CPU

from inferfleet.testing.engine_suite import EngineSuite
from inferfleet.worker import Engine
from inferfleet.worker.engines.vllm.engine import VllmEngine


class OnCpu(EngineSuite):
    engine_args: Mapping[str, Any] = {}

    @pytest.fixture(autouse=True)
    def with_the_tiny_model(self, tiny_model: str) -> None:
        self.tiny_model = tiny_model

    def make_engine(self) -> VllmEngine:
        self.others = multiprocessing.active_children()
        return VllmEngine(
            model=self.tiny_model, max_running=self.slots, engine_args={**ON_CPU, **self.engine_args}
        )

    async def kill(self, engine: Engine) -> None:
        for core in set(multiprocessing.active_children()).difference(self.others):
            core.kill()


class TestText(OnCpu):
    pass


class TestEmbeddings(OnCpu):
    engine_args: Mapping[str, Any] = {"runner": "pooling", "convert": "embed"}
