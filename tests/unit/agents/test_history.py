"""What follows from the steps of a run."""

from __future__ import annotations

from typing import Any

from inferfleet.agents.history import AskModel, Finish, History, MakeCalls
from inferfleet.schemas.run import (
    ModelAnswered,
    ModelCalled,
    RunFailure,
    RunFailureCode,
    RunLimits,
    Step,
    ToolEnded,
    ToolStarted,
)

JOB = "01890a5d-ac96-774b-bcce-b302099a8057"


def answered(*calls: tuple[str, str], text: str | None = None) -> ModelAnswered:
    # The id is that of each answer: models repeat them.
    made = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": text, "reasoning": "hm"}
    return ModelAnswered(message={**message, "tool_calls": made} if made else message, tokens=10)


def history(*steps: Step, **limits: Any) -> History:
    return History(RunLimits(**limits), steps)


def test_a_run_begins_with_the_model_and_goes_on_with_the_job_that_is_recorded() -> None:
    assert history().next() == AskModel(None)
    assert history(ModelCalled(job_id=JOB)).next() == AskModel(JOB)


def test_only_calls_without_a_result_are_made() -> None:
    so_far = history(
        ModelCalled(job_id=JOB),
        answered(("look", "{}"), ("pay", "{}")),
        ToolStarted(call="0.0"),
        ToolStarted(call="0.1"),
        ToolEnded(call="0.0", content="seen"),
    )
    following = so_far.next()
    assert isinstance(following, MakeCalls)
    assert [(call.key, call.name, call.last) for call in following.calls] == [
        ("0.1", "pay", ToolStarted(call="0.1"))
    ]
    so_far.add(ToolEnded(call="0.1", content="paid", tokens=5))
    assert so_far.next() == AskModel(None)
    assert so_far.tokens == 15
    so_far.add(answered(text="Done."))
    assert so_far.next() == Finish("Done.")


def test_the_conversation_is_made_of_the_steps() -> None:
    so_far = history(
        answered(("look", '{"at": 1}')),
        ToolEnded(call="0.0", content="\x1b[31m"),
        # The answer was cut off.
        answered(("look", '{"at": '), text="Again."),
        ToolEnded(call="1.0", content="error"),
    )
    messages = so_far.messages(instructions="Be brief.", question="What?")
    first, second = messages[2], messages[4]
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What?"},
        first,
        {"role": "tool", "tool_call_id": "call_0", "content": "\x1b[31m"},
        second,
        {"role": "tool", "tool_call_id": "call_0", "content": "error"},
    ]
    assert first["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": 1}'}
    assert (second["content"], second["tool_calls"][0]["function"]["arguments"]) == ("Again.", "{}")
    assert "reasoning" not in first


def test_a_recorded_call_of_the_model_counts_although_it_reaches_a_limit() -> None:
    steps: list[Step] = [answered(("look", "{}")), ToolEnded(call="0.0", content="seen")]
    following = history(*steps, max_steps=1).next()
    assert isinstance(following, RunFailure)
    assert following.code is RunFailureCode.MAX_STEPS
    assert history(*steps, ModelCalled(job_id=JOB), max_steps=1, max_tokens=1).next() == AskModel(JOB)


def test_an_answer_that_was_cut_off_ends_within_its_last_call() -> None:
    cut_off = {"cut_off": True}
    so_far = history(answered(("look", "{}"), ("pay", "")).model_copy(update=cut_off))
    assert [(call.name, call.cut_off) for call in so_far.open_calls()] == [("look", False), ("pay", True)]
    so_far = history(answered(text="It is").model_copy(update=cut_off))
    assert so_far.next() == Finish("It is", cut_off=True)


def test_the_order_of_calls_does_not_hide_that_they_are_repeated() -> None:
    calls = ("look", "{}"), ("pay", "{}")
    so_far = history(answered(*calls), max_repeats=1)
    assert (so_far.repeats, so_far.repeated_too_often) == (1, False)
    for call in ("0.0", "0.1"):
        so_far.add(ToolEnded(call=call, content=""))
    so_far.add(answered(*reversed(calls)))
    assert (so_far.repeats, so_far.repeated_too_often) == (2, True)
    so_far.add(answered(calls[0]))
    assert (so_far.repeats, so_far.repeated_too_often) == (1, False)
