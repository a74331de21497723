"""Prompts that begin alike have names in common, as far as they do."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.prompt_beginnings import LENGTHS, beginnings

LEAST = 100
DOCUMENT = "word " * 200


def named(text: str, *, tenant: str = "default", **more: Any) -> list[str]:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return beginnings(Job(body=body, tenant=tenant), least=LEAST)


def test_the_longest_beginning_comes_first_and_each_is_of_twice_as_many_characters() -> None:
    short, long = named("a" * 2 * LEAST), named("a" * 8 * LEAST)
    assert (len(short), len(long)) == (2, 4)
    assert long[-2:] == short
    assert len(named("a" * LEAST * 2 ** (LENGTHS + 3))) == LENGTHS


def test_prompts_have_the_names_in_common_up_to_where_they_differ() -> None:
    one, other = named(DOCUMENT + "one"), named(DOCUMENT[:300] + "other" + DOCUMENT[300:])
    assert one[0] != other[0]
    assert one[-2:] == other[-2:]
    assert not {*one[:-2]} & {*other[:-2]}


def test_a_prompt_that_is_shorter_has_none() -> None:
    assert named("a") == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"tenant": "other"}, id="tenant"),
        pytest.param({"model": "other"}, id="model"),
        pytest.param({"tools": [{"type": "function"}]}, id="tools"),
        pytest.param({"chat_template_kwargs": {"enable_thinking": False}}, id="template"),
    ],
)
def test_what_is_ahead_of_the_messages_counts(other: dict[str, Any]) -> None:
    assert not {*named(DOCUMENT)} & {*named(DOCUMENT, **other)}


def test_sampling_does_not_count() -> None:
    assert named(DOCUMENT) == named(DOCUMENT, temperature=0, max_tokens=3)


@pytest.mark.parametrize(
    ("endpoint", "body", "count"),
    [
        (Endpoint.COMPLETIONS, {"prompt": DOCUMENT}, 4),
        (Endpoint.COMPLETIONS, {"prompt": [1000] * 100}, 3),
        (Endpoint.EMBEDDINGS, {"input": DOCUMENT}, 0),
    ],
)
def test_of_which_endpoints_they_are(endpoint: Endpoint, body: dict[str, Any], count: int) -> None:
    assert len(beginnings(Job(endpoint=endpoint, body=body), least=LEAST)) == count


def test_half_a_character_has_a_name_too() -> None:
    assert len(named("\ud83d" * LEAST)) == 1
