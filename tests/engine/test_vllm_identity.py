"""Which model a vLLM engine says it has: the same for equal models, whatever their size and speed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.engine.conftest import ON_CPU, MakeEngine

from inferfleet.local.tiny_model import build_tiny_model
from inferfleet.worker.engines.vllm.engine import VllmEngine
from inferfleet.worker.ports import ModelIdentity

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def identity_of(model: Path, **engine_args: object) -> ModelIdentity:
    engine = VllmEngine(model=str(model), max_running=2, engine_args=ON_CPU | engine_args)
    assert engine.identity is None
    try:
        await engine.start()
        assert engine.identity is not None
        return engine.identity
    finally:
        await engine.stop()


async def test_a_copy_of_the_model_has_its_identity_whatever_its_batch_and_context(
    engine: VllmEngine, tiny_model: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copied"
    shutil.copytree(tiny_model, copy)
    identity = await identity_of(copy, tool_call_parser="hermes", max_model_len=512, seed=7)
    assert identity == engine.identity
    assert identity.short == engine.identity.short
    assert (identity.engine, identity.name, identity.dtype) == ("vllm", "tiny", "float32")
    assert identity.weights
    assert identity.tokenizer


async def test_other_weights_of_the_same_shape_are_another_model(engine: VllmEngine, tmp_path: Path) -> None:
    identity = await identity_of(build_tiny_model(tmp_path, seed=1), tool_call_parser="hermes")
    assert engine.identity is not None
    assert identity.short != engine.identity.short
    assert identity.weights != engine.identity.weights
    assert (identity.tokenizer, identity.prompt, identity.options) == (
        engine.identity.tokenizer,
        engine.identity.prompt,
        engine.identity.options,
    )


async def test_another_configuration_of_the_same_folder_is_another_model(
    engine: VllmEngine, tiny_model: str
) -> None:
    identity = await identity_of(
        Path(tiny_model), tool_call_parser="hermes", override_generation_config={"temperature": 0.5}
    )
    assert engine.identity is not None
    assert identity.weights == engine.identity.weights
    assert identity.short != engine.identity.short


async def test_what_changes_the_prompt_or_the_reading_of_an_answer_is_another_model(
    engine: VllmEngine, make_engine: MakeEngine
) -> None:
    async with make_engine(chat_template="{{ messages[0].content }}") as other:
        identity = other.identity
    assert identity is not None
    assert engine.identity is not None
    assert identity.weights == engine.identity.weights
    assert identity.prompt != engine.identity.prompt
    # It has no parser for tool calls.
    assert identity.options != engine.identity.options
