"""What of a conversation goes into a prompt, and which tool results may follow it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.session import Turn, history, tool_problem

SYSTEM = {"role": "system", "content": "be brief " * 10}


def user(text: str = "question") -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str = "answer") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def asks(*calls: str) -> dict[str, Any]:
    functions = [
        {"id": call, "type": "function", "function": {"name": "f", "arguments": "{}"}} for call in calls
    ]
    return {"role": "assistant", "tool_calls": functions}


def result(call: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": "42"}


def turn(*messages: dict[str, Any], tokens: int = 10) -> Turn:
    return Turn(job_id=new_job_id(), messages=messages, at=datetime.now(UTC), tokens=tokens)


def plain(number: int, tokens: int = 10) -> Turn:
    return turn(user(f"q{number}"), said(f"a{number}"), tokens=tokens)


def messages_of(*turns: Turn) -> tuple[dict[str, Any], ...]:
    return tuple(message for one in turns for message in one.messages)


def test_without_a_limit_everything_is_kept() -> None:
    turns = tuple(plain(number) for number in range(5))
    kept = history(turns)
    assert (kept.messages, kept.tokens) == (messages_of(*turns), 50)
    assert history(()).messages == ()


def test_the_oldest_whole_turns_are_left_out() -> None:
    turns = tuple(plain(number) for number in range(5))
    kept = history(turns, max_tokens=29)
    assert (kept.messages, kept.tokens) == (messages_of(*turns[3:]), 20)
    assert history(turns, max_tokens=30).messages == messages_of(*turns[2:])


def test_the_instructions_stay_and_count() -> None:
    opening = turn(SYSTEM, user(), said(), tokens=40)
    turns = (opening, *(plain(number) for number in range(10)))
    kept = history(turns, max_tokens=70)
    assert kept.messages[0] == SYSTEM
    assert kept.messages[1:] == messages_of(*turns[-len(kept.messages[1:]) // 2 :])
    assert 40 < kept.tokens <= 70
    assert kept.tokens % 10 != 0, "some of the first turn's tokens are the instructions'"


def test_tool_results_are_never_kept_without_the_turn_that_asked() -> None:
    chain = (turn(user(), asks("a")), turn(result("a"), asks("b")), turn(result("b"), said()))
    turns = (plain(0), *chain, plain(1))
    for limit in range(10, 40):
        assert history(turns, max_tokens=limit).messages == messages_of(turns[-1])
    assert history(turns, max_tokens=40).messages == messages_of(*turns[1:])


def test_new_tool_results_keep_their_call_whatever_the_limit() -> None:
    turns = (plain(0), turn(user(), asks("a"), tokens=500), turn(result("a"), asks("b"), tokens=500))
    kept = history(turns, max_tokens=10, new_messages=[result("b")])
    assert kept.messages == messages_of(*turns[1:])
    assert tool_problem(kept.messages, [result("b")]) is None
    assert history(turns, max_tokens=10, new_messages=[user()]).messages == ()


def test_a_turn_larger_than_the_limit_is_left_out_like_any_other() -> None:
    assert history((plain(0, tokens=100),), max_tokens=50).messages == ()


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=12), st.integers(1, 100), st.booleans()
)
def test_whatever_is_kept_has_every_result_behind_its_call(
    shape: list[tuple[bool, int]], limit: int, answers: bool
) -> None:
    turns: list[Turn] = []
    call = 0
    for continued, tokens in shape:
        opening = result(f"c{call}") if continued and turns else user()
        call += 1
        turns.append(turn(opening, asks(f"c{call}"), tokens=tokens))
    new = [result(f"c{call}")] if answers and turns else [user()]
    kept = history(tuple(turns), max_tokens=limit, new_messages=new)
    assert tool_problem((), [*kept.messages, *new]) is None
    whole = messages_of(*turns)
    assert kept.messages == whole[len(whole) - len(kept.messages) :]


# Tool results


def test_a_result_must_answer_a_call_at_the_end_of_the_conversation() -> None:
    past = (user(), asks("a", "b"))
    assert tool_problem(past, [result("a"), result("b"), user()]) is None
    assert tool_problem(past, [result("b")]) is None
    problem = tool_problem(past, [result("a"), result("x")])
    assert problem is not None
    assert problem.startswith("body.messages[1]: a tool result for call 'x'")
    assert "(unanswered calls: b)" in problem


def test_a_result_without_any_call_is_refused_wherever_it_stands() -> None:
    for past, new in (
        ((), [result("a")]),
        ((user(), said()), [result("a")]),
        ((user(), asks("a")), [result("a"), result("a")]),
        ((user(), asks("a")), [user("never mind"), result("a")]),
        ((user(), asks("a"), result("a"), said()), [result("a")]),
    ):
        problem = tool_problem(past, new)
        assert problem is not None
        assert "does not wait for" in problem


def test_a_turn_may_bring_calls_and_results_of_its_own() -> None:
    assert tool_problem((), [user(), asks("a"), result("a"), user()]) is None


def test_a_call_may_stay_without_a_result() -> None:
    assert tool_problem((user(), asks("a")), [user("never mind")]) is None
