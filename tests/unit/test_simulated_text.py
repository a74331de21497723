"""What the simulated engine says: the same for the same request, cut anywhere, in one piece or two."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferfleet.schemas import Endpoint
from inferfleet.worker.engines.simulated import expected_text
from inferfleet.worker.engines.simulated.answer import Answer, AnswerCutter, plan_answers
from inferfleet.worker.engines.simulated.request import read_request
from inferfleet.worker.engines.simulated.vocabulary import PIECES, decode, token_ids

LONG = {"max_tokens": 200, "ignore_eos": True}


def chat(*contents: str, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **more}


def answer(body: dict[str, Any], *, resume: tuple[int, ...] = (), max_model_len: int = 4096) -> Answer:
    (only,) = plan_answers(
        read_request(Endpoint.CHAT, body), max_model_len=max_model_len, resume_token_ids=resume
    )
    return only


def words(text: str) -> list[str]:
    return [word for word in text.split(" ") if word.isascii() and word]


def test_the_vocabulary_is_two_hundred_and_fifty_six_words_and_parts_of_longer_characters() -> None:
    assert len(set(PIECES[:256])) == 256
    assert all(piece.decode().startswith(" ") for piece in PIECES[:256])
    for part in PIECES[256:]:
        with pytest.raises(UnicodeDecodeError):
            part.decode()


def test_every_sixteen_tokens_have_a_character_that_is_split_over_several() -> None:
    ids = token_ids(b"any key", 16 * 50)

    for block in range(0, len(ids), 16):
        parts = [id_ for id_ in ids[block : block + 16] if id_ >= 256]
        assert len(parts) >= 2
        assert len(decode(parts)) == 1
    assert "�" not in decode(ids)


def test_a_longer_answer_begins_with_the_shorter_one() -> None:
    assert token_ids(b"key", 100)[:37] == token_ids(b"key", 37)


def test_a_character_that_lacks_its_last_token_is_left_out() -> None:
    rocket = [PIECES.index(b"\xf0\x9f"), PIECES.index(b"\x9a\x80")]

    assert decode([0, *rocket]) == " a🚀"
    assert decode([0, rocket[0]]) == " a"


def test_the_same_request_gets_the_same_text() -> None:
    assert expected_text(Endpoint.CHAT, chat("hello")) == expected_text(Endpoint.CHAT, chat("hello"))


@pytest.mark.parametrize(
    "other",
    [
        chat("hello!"),
        chat("hello", "hello"),
        chat("hello", seed=1),
        {"messages": [{"role": "system", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hello", "name": "ann"}]},
        chat("hello", tools=[{"type": "function", "function": {"name": "look_up"}}]),
    ],
    ids=["content", "history", "seed", "role", "name", "tools"],
)
def test_another_history_gets_another_text(other: dict[str, Any]) -> None:
    assert expected_text(Endpoint.CHAT, chat("hello", **LONG)) != expected_text(
        Endpoint.CHAT, {**other, **LONG}
    )


@pytest.mark.parametrize("temperature", [0, 0.7, 2])
def test_the_temperature_changes_nothing(temperature: float) -> None:
    assert expected_text(Endpoint.CHAT, chat("hello", temperature=temperature)) == expected_text(
        Endpoint.CHAT, chat("hello")
    )


def test_an_answer_has_eight_to_sixty_four_tokens_and_stops_by_itself() -> None:
    answers = [answer(chat(f"question {i}")) for i in range(300)]

    lengths = {len(each.token_ids) for each in answers}
    assert min(lengths) >= 8
    assert max(lengths) <= 64
    assert len(lengths) > 30
    assert {each.finish_reason for each in answers} == {"stop"}


def test_max_tokens_cuts_the_answer_short() -> None:
    whole, cut = answer(chat("hello")), answer(chat("hello", max_tokens=5))

    assert cut.token_ids == whole.token_ids[:5]
    assert cut.finish_reason == "length"


def test_max_completion_tokens_is_the_newer_name_of_max_tokens() -> None:
    assert len(answer(chat("hello", max_completion_tokens=3)).token_ids) == 3


def test_ignore_eos_generates_exactly_max_tokens() -> None:
    long = answer(chat("hello", **LONG))

    assert (len(long.token_ids), long.finish_reason) == (200, "length")


def test_an_answer_ends_where_the_context_ends() -> None:
    body = chat("x" * 400, max_tokens=4000, ignore_eos=True)
    prompt_tokens = read_request(Endpoint.CHAT, body).prompt_tokens

    clamped = answer(body, max_model_len=150)

    assert len(clamped.token_ids) == 150 - prompt_tokens
    assert clamped.finish_reason == "length"


def test_the_text_ends_before_the_stop_string_and_the_tokens_with_it() -> None:
    whole = answer(chat("hello", **LONG))
    stop = words(whole.text)[40]

    stopped = answer(chat("hello", stop=[stop, "never said"], **LONG))

    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stop in decode(stopped.token_ids)
    assert stop not in decode(stopped.token_ids[:-1])


def test_of_several_stop_strings_the_one_complete_first_counts() -> None:
    text = answer(chat("hello", **LONG)).text

    # The longer one begins earlier and ends later.
    stopped = answer(chat("hello", stop=[text[10:30], text[20:25]], **LONG))

    assert stopped.text == text[:20]


stops = st.sampled_from([None, " the", "e", "🚀", "ocean bird", "ar", ["ll", "in", "→"], "\n"])


@given(seed=st.integers(0, 10_000), stop=stops, cuts=st.sets(st.integers(1, 79)))
def test_chunks_join_to_the_text_wherever_they_are_cut(
    seed: int, stop: str | list[str] | None, cuts: set[int]
) -> None:
    whole = answer(chat("hello", seed=seed, stop=stop, max_tokens=80, ignore_eos=True))
    length = len(whole.token_ids)
    cutter = AnswerCutter(whole, index=0)

    chunks = [cutter.cut(position) for position in sorted({c for c in cuts if c < length} | {length})]

    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids


@given(seed=st.integers(0, 10_000), stop=stops, data=st.data())
def test_an_interrupted_answer_continues_without_gap_or_repeat(
    seed: int, stop: str | list[str] | None, data: st.DataObject
) -> None:
    body = chat("hello", seed=seed, stop=stop, max_tokens=80, ignore_eos=True)
    whole = answer(body)
    at = data.draw(st.integers(1, len(whole.token_ids)))
    before = AnswerCutter(whole, index=0).cut(at)

    rest = answer(body, resume=before.token_ids)
    cutter = AnswerCutter(rest, index=0)
    after = cutter.cut(len(rest.token_ids)) if cutter.position < len(rest.token_ids) else None

    assert (rest.token_ids, rest.text, rest.finish_reason) == (
        whole.token_ids,
        whole.text,
        whole.finish_reason,
    )
    assert before.text + (after.text if after else "") == whole.text
    assert (after.token_ids if after else ()) == whole.token_ids[at:]


def test_what_was_generated_before_stays_as_it_was_even_if_it_is_wrong() -> None:
    """So a worker that hands over somebody else's tokens is found out."""
    foreign = answer(chat("something else", **LONG)).token_ids[:10]

    continued = answer(chat("hello", **LONG), resume=foreign)

    assert continued.token_ids[:10] == foreign
    assert continued.token_ids[10:] == answer(chat("hello", **LONG)).token_ids[10:]
