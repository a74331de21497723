"""A worker replaces one real model by another under load; a corrupted one is caught by the probe."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aio_pika import Message
from safetensors.torch import load_file, save_file
from tests.engine.conftest import ON_CPU
from tests.engine.test_vllm_real_text import MODEL

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.services.native import unavailable_reason
from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.control import SwapModel
from inferfleet.schemas.model_swap import ModelSwap, SwapState
from inferfleet.schemas.names import CONTROL_EXCHANGE
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.wire.rabbitmq.publishing import ConfirmChannel
from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.probe import ProbeFailedError, ProbeResult, probe, require
from inferfleet.worker.worker import Worker

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1200)]

PATIENCE_S = 300.0
STREAMS = 32


def completion(number: int) -> dict[str, Any]:
    return {"prompt": f"say {number} words", "max_tokens": 48, "ignore_eos": True, "temperature": 0}


def with_lost_weights(model: Path, copy: Path) -> Path:
    """Copy a model; all of its weights are zero."""
    shutil.copytree(model, copy)
    weights = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor * 0 for name, tensor in weights.items()},
        copy / "model.safetensors",
        metadata={"format": "pt"},
    )
    return copy


class Swaps:
    def __init__(self, fleet: Fleet, channel: ConfirmChannel, worker_id: str) -> None:
        self._fleet = fleet
        self._channel = channel
        self._worker_id = worker_id

    async def to(self, model: Path) -> ModelSwap:
        order = SwapModel(
            swap_id=uuid4().hex, worker_id=self._worker_id, model=str(model), drain_timeout_s=PATIENCE_S
        )
        await self._channel.publish(CONTROL_EXCHANGE, Message(order.model_dump_json().encode()))
        while True:
            for worker in await self._fleet.workers():
                if worker.swap is not None and worker.swap.swap_id == order.swap_id and not worker.swap.busy:
                    return worker.swap
            await asyncio.sleep(0.05)


async def test_no_job_fails_and_each_answer_is_that_of_one_model_alone(tmp_path: Path) -> None:
    pool, worker_id = f"p-{uuid4().hex[:8]}", f"w-{uuid4().hex[:8]}"
    first = build_tiny_model(tmp_path / "first", seed=0)
    second = build_tiny_model(tmp_path / "second", seed=1)
    choice = ServicesChoice.EMBEDDED if unavailable_reason() else ServicesChoice.NATIVE
    with running_services(choice) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=pool,
            worker_id=worker_id,
            engine="vllm",
            model=str(first),
            engine_args=ON_CPU,
            max_running=STREAMS,
            http_host="127.0.0.1",
            http_port=0,
        )
        channel = ConfirmChannel(
            services.amqp_url, connect_timeout_s=PATIENCE_S, confirm_timeout_s=PATIENCE_S, name="test"
        )
        async with Fleet.connect(ProducerSettings(**urls)) as fleet:
            await fleet.declare_pool(pool)
            worker = Worker(settings=settings, engine=VllmEngine.from_settings(settings))
            running = asyncio.create_task(worker.run())

            async def texts(numbers: range) -> dict[int, tuple[str, str]]:
                """Answer each request; return the model's identity and the text."""
                jobs = await fleet.submit_many(
                    Job(pool=pool, endpoint=Endpoint.COMPLETIONS, body=completion(n), stream=True)
                    for n in numbers
                )
                results = await fleet.wait_many(jobs, timeout_s=PATIENCE_S)
                found: dict[int, tuple[str, str]] = {}
                for number, result in zip(numbers, results, strict=True):
                    whole = result.raise_for_state()
                    assert whole.model_identity is not None
                    assert whole.text is not None
                    found[number] = (whole.model_identity, whole.text)
                return found

            # Given what the first model says alone
            of_first = await texts(range(STREAMS))
            swaps = Swaps(fleet, channel, worker_id)

            # When it is replaced under load
            swapping = asyncio.create_task(swaps.to(second))
            during: list[dict[int, tuple[str, str]]] = []
            while not swapping.done():
                during.append(await texts(range(STREAMS)))
            swap = await swapping

            # Then each answer is that of the first or that of the second model
            of_second = await texts(range(STREAMS))
            assert (swap.state, swap.reason, swap.without_service_s) == (SwapState.SWITCHED, "", 0.0)
            assert {identity for identity, _ in of_first.values()}.isdisjoint(
                identity for identity, _ in of_second.values()
            )
            assert of_first != of_second
            for answers in during:
                for number, answer in answers.items():
                    assert answer in (of_first[number], of_second[number])
            assert of_first in during

            # And a model without its weights does not take its place
            failed = await swaps.to(with_lost_weights(second, tmp_path / "lost"))
            assert failed.state is SwapState.ROLLED_BACK
            assert "one token over and over" in failed.reason
            assert await texts(range(STREAMS)) == of_second
            worker.stop()
            await running
        await channel.aclose()


@pytest.mark.skipif(not MODEL.exists(), reason="scripts/setup-demo-model has not been run")
async def test_a_model_with_another_tokenizer_or_damaged_weights_is_not_fit(tmp_path: Path) -> None:
    async def probed(model: Path) -> ProbeResult:
        engine = VllmEngine(model=str(model), max_running=4, engine_args=ON_CPU)
        try:
            await engine.start()
            return await probe(engine)
        finally:
            await engine.stop()

    current = await probed(MODEL)
    require(current, current=current, hash_=current.hash, max_perplexity=30)

    mixed_up = tmp_path / "mixed-up"
    shutil.copytree(MODEL, mixed_up)
    tokenizer = (mixed_up / "tokenizer.json").read_text()
    _shuffle_tokens(mixed_up / "tokenizer.json", tokenizer)
    with pytest.raises(ProbeFailedError, match="another model's tokenizer"):
        require(await probed(mixed_up), current=current, hash_=None, max_perplexity=None)


def _shuffle_tokens(path: Path, tokenizer: str) -> None:
    """Give each ordinary token the number of another, as in the tokenizer of another model."""
    whole = json.loads(tokenizer)
    vocabulary = whole["model"]["vocab"]
    special = {token["content"] for token in whole["added_tokens"]}
    ordinary = [token for token in vocabulary if token not in special]
    numbers = [vocabulary[token] for token in ordinary]
    vocabulary.update(zip(ordinary, numbers[1000:] + numbers[:1000], strict=True))
    path.write_text(json.dumps(whole))
