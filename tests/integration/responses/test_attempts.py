"""One response in several attempts: its events and their numbers."""

from __future__ import annotations

from pathlib import Path

from openai import AsyncOpenAI
from tests.integration.conftest import (
    StartWorker,
)
from tests.integration.responses.conftest import (
    numbers,
    read,
    said,
    text_of,
    until_text,
)

from inferfleet.producer import Fleet
from inferfleet.testing.script import Script
from inferfleet.testing.scripted_engine import ScriptedEngine
from inferfleet.worker.engines.simulated import SimulatedEngine


async def test_an_answer_that_is_resumed_goes_on_with_the_next_number(
    client: AsyncOpenAI, start_worker: StartWorker, fleet: Fleet, pool: str, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    script.add(prompt="hang", text="one two three four", hang_after_tokens=2)
    first = await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))
    stream = await client.responses.create(model=pool, input="hang", background=True, stream=True)
    events = [event async for event in until_text(stream, "one two ")]
    await first.stop()
    await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))

    events += await read(stream)

    again = await read(await client.responses.retrieve(events[0].response.id, stream=True))
    assert numbers(events) == list(range(len(events)))
    assert text_of(events) == "one two three four"
    assert again == events


async def test_an_answer_that_restarts_tells_whoever_has_seen_some_of_it(
    client: AsyncOpenAI, start_worker: StartWorker, pool: str, tmp_path: Path
) -> None:
    script = Script(tmp_path)
    script.add(prompt="hang", text="one two three four", hang_after_tokens=2)
    first = await start_worker(ScriptedEngine(model="scripted", max_running=8, script=script))
    stream = await client.responses.create(model=pool, input="hang", background=True, stream=True)
    events = [event async for event in until_text(stream, "one two ")]
    await first.stop()
    # Another model does not continue this one's answer.
    await start_worker(SimulatedEngine(model="other", max_running=8, engine_args={"speed": 0}))

    events += await read(stream)

    response_id = events[0].response.id
    assert (events[-1].type, events[-1].code) == ("error", "answer_restarted")
    told = events[-1].sequence_number
    seen = numbers(events)[-2]
    assert told > seen
    whole = await read(await client.responses.retrieve(response_id, stream=True))
    assert numbers(whole)[:3] == [0, 1, 2]
    assert numbers(whole)[3:] == list(range(told + 1, told + 1 + len(whole) - 3))
    assert text_of(whole) == whole[-1].response.output_text == said(("user", "hang"))
    for after, expected in ((seen, events[-1:]), (3, events[-1:]), (told, whole[3:]), (2, whole[3:])):
        assert (
            await read(await client.responses.retrieve(response_id, stream=True, starting_after=after))
            == expected
        )
    assert (await client.responses.retrieve(response_id)).output_text == said(("user", "hang"))
