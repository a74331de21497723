"""A model that knows something continues its own sentences, and not just its own token ids."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.conftest import ON_CPU, Ask

from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.ports import Engine

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

MODEL = Path(sys.prefix) / "models" / "smollm2-135m-instruct"
"""Where ``scripts/setup-demo-model`` puts it."""


@pytest.mark.skipif(not MODEL.exists(), reason="scripts/setup-demo-model has not been run")
async def test_a_sentence_goes_on_the_same_behind_each_of_its_words(asking: Callable[[Engine], Ask]) -> None:
    body = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 24}
    arguments = ON_CPU | {"served_model_name": "smollm2", "max_model_len": 512}
    engine = VllmEngine(model=str(MODEL), max_running=8, engine_args=arguments)
    try:
        await engine.start()
        ask = asking(engine)
        whole = await ask(body)
        cuts = range(1, len(whole.token_ids))
        resumed = await asyncio.gather(*(ask(body, resume_token_ids=whole.token_ids[:cut]) for cut in cuts))
    finally:
        await engine.stop()

    assert whole.text.startswith(" Paris")
    assert {answer.text for answer in resumed} == {whole.text}
