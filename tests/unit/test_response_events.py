"""A journal as the events of OpenAI's Responses API."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Any

import orjson
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from inferfleet.producer.openai.response_events import NUMBERS_PER_TOKEN, ResponseEvents
from inferfleet.producer.openai.response_requests import ResponseRecord, read_response_request
from inferfleet.schemas import Endpoint, JobState, Result, Usage
from inferfleet.schemas.failures import Failure, FailureCode
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.journal import (
    AnswerHead,
    FinishedEntry,
    RestartedEntry,
    RestartReason,
    TokenChunk,
    TokensEntry,
)

AT = datetime(2026, 11, 26, 12, tzinfo=UTC)
JOB_ID = new_job_id()
HEAD = AnswerHead(endpoint=Endpoint.CHAT, model="tiny", prompt_tokens=5)

_event: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def events(**asked: Any) -> ResponseEvents:
    given = read_response_request({}, orjson.dumps({"input": "hello", "model": "tiny", **asked}))
    return ResponseEvents(JOB_ID, ResponseRecord(created_at=1, shown=given.shown, items=tuple(given.items)))


def tokens(*chunks: TokenChunk) -> TokensEntry:
    return TokensEntry(at=AT, attempt=1, offset=0, chunks=chunks, head=HEAD)


def text(said: str) -> TokenChunk:
    return TokenChunk(token_ids=(1,), text=said)


def delta(**fields: Any) -> TokenChunk:
    return TokenChunk(token_ids=(1,), delta=fields)


def call(index: int, **function: str) -> TokenChunk:
    begun = {"id": f"call-{index}", "type": "function"} if "name" in function else {}
    return delta(tool_calls=[{"index": index, **begun, "function": function}])


def end(made: ResponseEvents, state: JobState = JobState.SUCCEEDED, **fields: Any) -> list[dict[str, Any]]:
    response = {"model": "tiny", "choices": [{"index": 0, "finish_reason": "stop"}], "usage": {}}
    result = Result(
        job_id=JOB_ID,
        state=state,
        usage=Usage(prompt_tokens=5, completion_tokens=2),
        **{"response": response, **fields},
    )
    return made.finished(FinishedEntry(at=AT, attempt=1, state=state), result)


def check(made: list[dict[str, Any]]) -> list[str]:
    """Check the form of events, and that none is missing. Return their types."""
    for each in made:
        _event.validate_python(each)
    assert [each["sequence_number"] for each in made] == list(range(len(made)))
    return [each["type"].removeprefix("response.") for each in made]


def test_reasoning_text_and_calls_are_items_each_ended_before_the_next() -> None:
    made = events()
    chunks = (
        delta(reasoning="hm"),
        text("So"),
        text(": "),
        call(0, name="f", arguments=""),
        call(0, arguments='{"a":'),
        call(0, arguments="1}"),
        call(1, name="g", arguments="{}"),
    )

    all_events = [*made.queued(), *made.running(), *made.tokens(tokens(*chunks)), *end(made)]

    assert check(all_events) == [
        *("created", "queued", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    reasoning, message, first, second = all_events[-1]["response"]["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "So: "
    assert (first["call_id"], first["name"], first["arguments"]) == ("call-0", "f", '{"a":1}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("call-1", "g", "{}")
    done = [each["item"] for each in all_events if each["type"] == "response.output_item.done"]
    assert done == [reasoning, message, first, second]
    assert len({item["id"] for item in done}) == 4


def test_the_numbers_do_not_depend_on_the_lines_in_which_the_tokens_came() -> None:
    chunks = (text("one "), TokenChunk(token_ids=(2,)), text("two"))
    as_written, written_again = events(), events()

    one = [event for chunk in chunks for event in as_written.tokens(tokens(chunk))]
    other = written_again.tokens(tokens(*chunks))

    assert one == other
    assert end(as_written) == end(written_again)


def test_an_answer_without_text_has_an_empty_message() -> None:
    made = events()

    all_events = [*made.queued(), *made.running(), *end(made)]

    assert check(all_events)[-1] == "completed"
    assert all_events[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_a_failure_keeps_what_was_said() -> None:
    made = events()
    began = [*made.queued(), *made.running(), *made.tokens(tokens(text("one")))]
    failure = Failure(code=FailureCode.ENGINE_ERROR, message="it broke")

    all_events = [*began, *end(made, JobState.FAILED, error=failure)]

    assert check(all_events)[-1] == "failed"
    response = all_events[-1]["response"]
    assert response["error"] == {"code": "server_error", "message": "engine_error: it broke"}
    assert (response["output"][0]["status"], response["completed_at"]) == ("incomplete", None)


def test_the_numbers_behind_a_restart_are_the_same_whether_or_not_the_void_tokens_are_there() -> None:
    entry = RestartedEntry(at=AT, attempt=2, reason=RestartReason.ANOTHER_MODEL, tokens_wasted=2)
    has_them, lacks_them = events(), events()
    void = has_them.tokens(tokens(text("one "), text("two")))

    seen, told = has_them.restarted(entry)

    assert (seen, told) == lacks_them.restarted(entry)
    assert {event["sequence_number"] for event in void} <= set(seen)
    assert told["sequence_number"] == seen.stop == 3 + 2 * NUMBERS_PER_TOKEN - 1
    _event.validate_python(told)
    next_ones = has_them.tokens(tokens(text("three")))
    assert next_ones == lacks_them.tokens(tokens(text("three")))
    assert next_ones[0]["sequence_number"] == seen.stop + 1
    assert next_ones[0]["output_index"] == 0


def test_a_restart_sends_nobody_to_a_response_that_is_not_stored() -> None:
    entry = RestartedEntry(at=AT, attempt=2, reason=RestartReason.ANOTHER_MODEL, tokens_wasted=2)

    told = [events(store=store).restarted(entry)[1]["message"] for store in (True, False)]

    assert "read the response" in told[0]
    assert told[1].endswith("send the request again")


def test_a_piece_of_an_answer_costs_nothing_for_the_pieces_before_it() -> None:
    piece = "x" * 100_000
    entries = [tokens(chunk) for chunk in (text(piece), call(0, name="f"), call(0, arguments=piece))]
    made = events()

    for entry in (entries[0], entries[1], entries[2]):
        made.tokens(entry)
        tracemalloc.start()
        for _ in range(50):
            made.tokens(entry)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < len(piece)

    message, called = end(made)[-1]["response"]["output"]
    assert message["content"][0]["text"] == piece * 51
    assert called["arguments"] == piece * 51
