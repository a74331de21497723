"""Each kind of failure has its code, and a message that names the trouble and never the prompt."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.schemas import FailureCode
from inferfleet.worker.ports import GenerationError

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECRET = "my secret word"


def a_chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5} | fields


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (a_chat(messages=SECRET), "messages"),
        (a_chat(messages=[]), "empty conversation"),
        (a_chat(messages=[{"role": "user", "content": {"text": SECRET}}]), "ContentPart"),
        (a_chat(temperature=-1), "temperature"),
        (a_chat(temperature=SECRET), "temperature"),
        (a_chat(max_tokens=0), "max_tokens"),
        (a_chat(max_tokens=5000), "max_tokens=5000"),
        (a_chat(stop=[""]), "stop"),
        (a_chat(top_p=7), "top_p"),
        (a_chat(use_beam_search=True), "use_beam_search"),
        (a_chat(model="other"), "serves 'tiny', not 'other'"),
        (a_chat(chat_template="{{ SECRET }}"), "chat template"),
        (a_chat(tools=[], tool_choice="required"), "tool"),
        (a_chat(structured_outputs={"regex": "(("}), "regex"),
        (a_chat(messages=[{"role": "user", "content": [{"type": SECRET, SECRET: SECRET}]}]), "type"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [99_999]}, "vocabulary"),
        ({"prompt": SECRET, "logit_bias": {"99999": 1}}, "logit_bias"),
        ({"input": SECRET}, "/v1/embeddings"),
        (a_chat(model=["tiny"]), "model"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_request_that_cannot_be_answered_is_refused(ask, body, words):
    with pytest.raises(GenerationError) as error:
        await ask(body)

    assert error.value.code is FailureCode.INVALID_REQUEST
    assert words in str(error.value)
    assert SECRET not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        (a_chat(messages=[{"role": "user", "content": f"{SECRET} {' the' * 2000}"}]), ("1024", "1025")),
        ({"prompt": [300] * 1024}, ("1024", "1024")),
        ({"prompt": [300] * 3000}, ("1024", "3000")),
        ({"prompt": SECRET * 10_000}, ("1024", "140000")),
    ],
    ids=["a chat", "exactly full", "token ids", "far too long"],
)
async def test_a_prompt_that_is_too_long_says_how_long(ask, body, numbers):
    with pytest.raises(GenerationError) as error:
        await ask(body)

    assert error.value.code is FailureCode.PROMPT_TOO_LONG
    assert all(number in str(error.value) for number in numbers)
    assert SECRET not in str(error.value)


async def test_no_prompt_and_no_answer_is_in_a_log(ask, capfd):
    answer = await ask(a_chat())
    with pytest.raises(GenerationError):
        await ask(a_chat(temperature=SECRET))

    printed = "".join(capfd.readouterr())
    assert SECRET not in printed
    assert answer.text not in printed


async def test_a_refused_request_leaves_the_engine_well(ask, engine):
    with pytest.raises(GenerationError):
        await ask(a_chat(temperature=-1))

    assert (await ask(a_chat())).usage.completion_tokens == 5
    assert engine.stats().running == 0
