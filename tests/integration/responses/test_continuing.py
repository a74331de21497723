"""What comes before a response: others, or a conversation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
import redis.asyncio as aioredis
from openai import AsyncOpenAI
from openai.types.responses import Response
from tests.integration.conftest import (
    StartWorker,
    eventually,
)
from tests.integration.responses.conftest import checked, job_of, said

from inferfleet.producer import Fleet
from inferfleet.schemas.names import job_key, journal_key, response_key, result_key
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine


async def test_responses_continue_others_each_on_its_own_branch(
    client: AsyncOpenAI, start_worker: StartWorker, store: aioredis.Redis, pool: str
) -> None:
    await start_worker()
    first = await client.responses.create(model=pool, input="one", instructions="be brief")

    async def then(text: str, **more: Any) -> Response:
        return await client.responses.create(model=pool, input=text, **more)

    left, right = await asyncio.gather(
        then("two", previous_response_id=first.id),
        then("three", previous_response_id=first.id, instructions="be loud"),
    )
    keys = [key(job_of(first)) for key in (job_key, journal_key, result_key, response_key)]
    for key in keys:
        assert await store.expire(key, 100)
    deeper = await then("four", previous_response_id=left.id)

    began = (("user", "one"), ("assistant", first.output_text))
    second = (("user", "two"), ("assistant", left.output_text))
    assert left.output_text == said(*began, ("user", "two"))
    assert right.output_text == said(("system", "be loud"), *began, ("user", "three"))
    assert deeper.output_text == said(*began, *second, ("user", "four"))
    assert deeper.previous_response_id == left.id
    # What is continued lives on, also while its successor waits.
    assert all([await store.ttl(key) > 600 for key in keys])

    await client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match=f"{deeper.id} cannot be continued") as refused:
        await then("five", previous_response_id=deeper.id)
    assert refused.value.code == "previous_response_not_found"


async def test_only_an_answer_can_be_continued(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str
) -> None:
    waiting = await client.responses.create(model=pool, input="one", background=True)

    for previous, code in ((waiting.id, "invalid_request"), ("resp_x", "previous_response_not_found")):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model=pool, input="two", previous_response_id=previous)
        assert (refused.value.code, refused.value.param) == (code, "previous_response_id")

    await client.responses.cancel(waiting.id)
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        await client.responses.create(model=pool, input="two", previous_response_id=waiting.id)


async def test_a_conversation_is_a_session_and_keeps_no_instructions(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    item: Any = {"role": "developer", "content": "context"}
    conversation = await client.conversations.create(items=[item], metadata={"a": "b"})

    async def then(text: str, instructions: str | None = None) -> Response:
        return checked(
            await client.responses.create(
                model=pool, input=text, conversation=conversation.id, instructions=instructions
            )
        )

    one = await then("one", "be brief")
    two = await then("two")
    branch = await client.responses.create(model=pool, input="three", previous_response_id=one.id)

    began = (("developer", "context"), ("user", "one"), ("assistant", one.output_text))
    assert one.output_text == said(("system", "be brief"), *began[:2])
    assert two.output_text == said(*began, ("user", "two"))
    assert branch.output_text == said(*began, ("user", "three"))
    assert two.conversation is not None
    assert two.conversation.id == conversation.id
    history = await fleet.session(conversation.id).history()
    assert [message["content"] for message in history] == [
        "context",
        "one",
        one.output_text,
        "two",
        two.output_text,
    ]
    listed = [each async for each in client.conversations.items.list(conversation.id, order="asc", limit=2)]
    assert [each.role for each in listed] == ["developer", "user", "assistant", "user", "assistant"]


async def test_instructions_do_not_count_as_the_history(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    await start_worker()
    conversation = (await client.conversations.create()).id

    await client.responses.create(model=pool, input="one", conversation=conversation)
    await client.responses.create(
        model=pool, input="one", conversation=conversation, instructions="word " * 2000
    )

    without, beside = [turn.tokens for turn in await fleet.session(conversation).turns()]
    assert 0 < beside < without + 200


async def test_metadata_replaces_no_state_that_is_not_an_object(client: AsyncOpenAI, fleet: Fleet) -> None:
    made = await client.conversations.create()
    session = fleet.session(made.id)
    version, _ = await session.state()
    await session.update_state([1, 2, 3], version=version)

    with pytest.raises(openai.ConflictError) as refused:
        await client.conversations.update(made.id, metadata={"a": "b"})

    assert refused.value.code == "state_conflict"
    assert (await session.state())[1] == [1, 2, 3]


@pytest.mark.parametrize("runs", [True, False])
async def test_a_conversation_that_is_deleted_while_it_has_an_unfinished_response_stays_deleted(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str, tmp_path: Path, runs: bool
) -> None:
    """One that runs, and is cancelled then; or one that waits, and is answered then."""
    made = await client.conversations.create(metadata={"a": "b"})
    response = await client.responses.create(model=pool, input="hang", conversation=made.id, background=True)
    if runs:
        script = Script(tmp_path)
        script.add(prompt="hang", text="one two three", hang_after_tokens=2)
        await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))

    async def status_is(*expected: str) -> bool:
        return (await client.responses.retrieve(response.id)).status in expected

    await eventually(lambda: status_is("in_progress" if runs else "queued"))
    assert (await client.conversations.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(made.id)
    await (client.responses.cancel(response.id) if runs else start_worker())
    await eventually(lambda: status_is("cancelled" if runs else "completed"))
    for ask in (client.conversations.retrieve, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError):
            await ask(made.id)


async def test_a_conversation_is_read_changed_and_deleted(client: AsyncOpenAI, fleet: Fleet) -> None:
    made = await client.conversations.create(metadata={"a": "b", "c": "d"})

    changed = await client.conversations.update(made.id, metadata={"a": "e"})

    assert (await client.conversations.retrieve(made.id)).metadata == changed.metadata == {"a": "e"}
    assert changed.created_at == made.created_at
    assert (await client.conversations.delete(made.id)).deleted
    assert await fleet.session(made.id).get() is None
    for ask in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(openai.NotFoundError) as unknown:
            await ask(made.id)
        assert unknown.value.code == "conversation_not_found"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.responses.create(input="hello", conversation=made.id)
    assert unknown.value.code == "conversation_not_found"
