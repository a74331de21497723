"""The steps of an agent's run, as a page shows them. Pure."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import assert_never

from inferfleet.gateway.ui.answers import Part, cut, message_parts
from inferfleet.schemas.run import (
    ChildStarted,
    ModelAnswered,
    ModelCalled,
    QuestionAnswered,
    QuestionAsked,
    QuestionKind,
    Step,
    ToolEnded,
    ToolStarted,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """A step: what happened, and what was said. It may have a job, or another run, that tells more."""

    what: str = ""
    part: Part | None = None
    job_id: str = ""
    run_id: str = ""


def step_views(steps: Iterable[Step]) -> Generator[StepView]:
    """Yield the steps in words."""
    names: dict[str, str] = {}
    answers = 0
    for step in steps:
        match step:
            case ModelCalled(job_id=job_id):
                yield StepView(what="asks the model", job_id=job_id)
            case ModelAnswered(message=message):
                for number, call in enumerate(message.get("tool_calls") or ()):
                    names[f"{answers}.{number}"] = call["function"]["name"]
                answers += 1
                for part in message_parts([message]):
                    yield StepView(part=part)
            case ToolStarted(call=call):
                yield StepView(what=f"makes call {call} of {names[call]}")
            case ChildStarted(call=call, run_id=run_id):
                yield StepView(what=f"starts a run for call {call} of {names[call]}", run_id=run_id)
            case QuestionAsked(call=call, question=question):
                about = "approval" if question is QuestionKind.APPROVAL else "its outcome"
                yield StepView(what=f"asks a person about call {call} of {names[call]}: {about}")
            case QuestionAnswered(call=call, answer=answer):
                told = f"{answer.verdict}: {answer.note}" if answer.note else answer.verdict
                yield StepView(what=f"got an answer about call {call} of {names[call]}: {told}")
            case ToolEnded(call=call, content=content):
                title = f"Result of call {call} of {names[call]}"
                yield StepView(part=Part(title=title, text=cut(content)))
            case _:
                assert_never(step)
