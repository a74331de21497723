"""Makes the events of a response, and its output, from a job's journal.

The number of an event depends only on the tokens before it, in the pieces in which the worker wrote them. So
all gateways count alike, whichever attempts generated the answer, even if Redis lost the journal and the
worker wrote it again. The first three numbers are fixed. If an answer restarts, the numbers of the next one
begin after all that the former one may have had: 1,000 for each void token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inferfleet.producer.openai.response_items import Item, output_text
from inferfleet.producer.openai.response_objects import response_object
from inferfleet.producer.openai.response_requests import ResponseRecord
from inferfleet.schemas.job import JobState
from inferfleet.schemas.journal import FinishedEntry, RestartedEntry, TokenChunk, TokensEntry
from inferfleet.schemas.result import Result

CREATED: Final = 0
QUEUED: Final = 1
IN_PROGRESS: Final = 2
FIRST_OUTPUT: Final = 3

NUMBERS_PER_TOKEN: Final = 1000
"""More events than one token can cause."""

Event = dict[str, Any]

_COMPLETED: Final = "completed"
_INCOMPLETE: Final = "incomplete"
_IN_PROGRESS: Final = "in_progress"


class ResponseEvents:
    """The events of one response. Give it the entries of the journal in their order."""

    def __init__(self, job_id: str, record: ResponseRecord) -> None:
        self._job_id = job_id
        self._record = record
        self._runs = False
        self._output: list[Item] = []
        self._open: Item | None = None
        self._pieces: list[str] = []
        self._calls: dict[int, Item] = {}
        self._first = self._number = FIRST_OUTPUT

    def queued(self) -> list[Event]:
        """Make the first events of every response."""
        return [self._of_response("created", CREATED), self._of_response("queued", QUEUED)]

    def running(self) -> list[Event]:
        """Make the event that says that the job has begun, once."""
        if self._runs:
            return []
        self._runs = True
        return [self._of_response("in_progress", IN_PROGRESS)]

    def tokens(self, entry: TokensEntry) -> list[Event]:
        """Make the events of the next tokens."""
        return [event for chunk in entry.chunks for event in self._of_chunk(chunk)]

    def restarted(self, entry: RestartedEntry) -> tuple[range, Event]:
        """Forget the answer so far. Return the void numbers, and the event for readers that saw some."""
        first = self._first
        self._first = self._number = first + NUMBERS_PER_TOKEN * max(1, entry.tokens_wasted)
        self._output, self._open, self._calls = [], None, {}
        number = self._first - 1
        then = (
            f"read the response, or its events after {number}"
            if self._record.shown["store"]
            else "send the request again"
        )
        return range(first, number), {
            "type": "error",
            "code": "answer_restarted",
            "message": f"the answer restarts ({entry.reason}), so the output so far is void: {then}",
            "param": None,
            "sequence_number": number,
        }

    def finished(self, entry: FinishedEntry, result: Result) -> list[Event]:
        """Make the last events."""
        ended = response_object(
            self._job_id, self._record, state=result.state, result=result, finished_at=entry.at
        )
        made: list[Event] = []
        if result.state is JobState.SUCCEEDED and not self._output:
            made += self._begin(_message())
        made += self._end(_COMPLETED if ended["status"] == _COMPLETED else _INCOMPLETE)
        kind = ended["status"] if ended["status"] in {_COMPLETED, "failed"} else _INCOMPLETE
        ended["output"] = self._output
        return [*made, self._next(f"response.{kind}", response=ended)]

    def _of_chunk(self, chunk: TokenChunk) -> list[Event]:
        delta = chunk.delta or {}
        made: list[Event] = []
        if reasoning := delta.get("reasoning"):
            made += self._switch("reasoning")
            made += self._add_text(reasoning)
        if chunk.text:
            made += self._switch("message")
            made += self._add_text(chunk.text)
        for part in delta.get("tool_calls") or ():
            made += self._of_call(part)
        return made

    def _switch(self, kind: str) -> list[Event]:
        """Begin an item of this kind, unless one is open."""
        if self._open is not None and self._open["type"] == kind:
            return []
        return self._begin(_message() if kind == "message" else _reasoning())

    def _of_call(self, part: Mapping[str, Any]) -> list[Event]:
        function: Mapping[str, Any] = part.get("function") or {}
        made: list[Event] = []
        call = self._calls.get(part["index"])
        if call is None:
            name, call_id = function.get("name") or "", part.get("id") or ""
            call = self._calls[part["index"]] = {
                "type": "function_call",
                "call_id": call_id,
                "name": name,
                "arguments": "",
            }
            made += self._begin(call)
        if arguments := function.get("arguments"):
            if call is self._open:
                self._pieces.append(arguments)
            else:
                call["arguments"] += arguments
            made.append(self._of_item("response.function_call_arguments.delta", call, delta=arguments))
        return made

    def _begin(self, item: Item) -> list[Event]:
        made = self._end(_COMPLETED)
        prefix = {"message": "msg", "reasoning": "rs"}.get(item["type"], "fc")
        item["id"] = f"{prefix}_{self._job_id}_{len(self._output)}"
        item["status"] = _IN_PROGRESS
        self._output.append(item)
        self._open, self._pieces = item, []
        made.append(self._of_whole_item("response.output_item.added", item))
        if (part := _begun_part(item)) is not None:
            made.append(self._of_item("response.content_part.added", item, content_index=0, part={**part}))
            item["content"] = [part]
        return made

    def _add_text(self, text: str) -> list[Event]:
        assert self._open is not None  # noqa: S101 - it has been begun
        item = self._open
        (part,) = item["content"]
        self._pieces.append(text)
        return [
            self._of_item(
                f"response.{part['type']}.delta", item, content_index=0, delta=text, **_logprobs(item)
            )
        ]

    def _end(self, status: str) -> list[Event]:
        """End the open item."""
        if (item := self._open) is None:
            return []
        self._open = None
        item["status"] = status
        said = "".join(self._pieces)
        made: list[Event] = []
        if item["type"] == "function_call":
            arguments = item["arguments"] = said
            made.append(self._of_item("response.function_call_arguments.done", item, arguments=arguments))
        else:
            (part,) = item["content"]
            part["text"] = said
            done = f"response.{part['type']}.done"
            made.append(self._of_item(done, item, content_index=0, text=part["text"], **_logprobs(item)))
            made.append(self._of_item("response.content_part.done", item, content_index=0, part=part))
        made.append(self._of_whole_item("response.output_item.done", item))
        return made

    def _of_item(self, kind: str, item: Item, **members: Any) -> Event:
        """Make an event of a part of an item."""
        return self._next(kind, item_id=item["id"], output_index=self._index(item), **members)

    def _of_whole_item(self, kind: str, item: Item) -> Event:
        return self._next(kind, output_index=self._index(item), item={**item})

    def _index(self, item: Item) -> int:
        # Nearly always it is the last one, and comparing items costs as much as they are long.
        return len(self._output) - 1 if item is self._output[-1] else self._output.index(item)

    def _next(self, kind: str, **members: Any) -> Event:
        number = self._number
        self._number += 1
        return {"type": kind, "sequence_number": number, **members}

    def _of_response(self, status: str, number: int) -> Event:
        state = JobState.RUNNING if status == _IN_PROGRESS else JobState.QUEUED
        response = response_object(self._job_id, self._record, state=state)
        return {"type": f"response.{status}", "sequence_number": number, "response": response}


def _message() -> Item:
    return {"type": "message", "role": "assistant", "content": []}


def _reasoning() -> Item:
    return {"type": "reasoning", "summary": [], "content": []}


def _logprobs(item: Item) -> dict[str, Any]:
    """Make the members that only events of a text have. A journal has no logprobs."""
    return {"logprobs": []} if item["type"] == "message" else {}


def _begun_part(item: Item) -> dict[str, Any] | None:
    match item["type"]:
        case "message":
            return output_text("")
        case "reasoning":
            return {"type": "reasoning_text", "text": ""}
        case _:
            return None
