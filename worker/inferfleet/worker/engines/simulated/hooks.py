"""Orders in a request body that only the simulated engine reads: the answer's length, and faults to cause.

They travel with the job, so a chaos test can make a job that kills every worker that runs it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from inferfleet.schemas import FailureCode


class Hooks(BaseModel):
    """The field ``simulated`` of a body.

    A fault strikes when the answer has ``after_tokens`` tokens, including those of earlier attempts, or at
    the end of a shorter answer. ``fail_times`` counts per job and worker process. ``step_delay_s`` is the
    shortest batch step with this request, in real seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tokens: Annotated[int, Field(ge=1)] | None = None
    step_delay_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    after_tokens: Annotated[int, Field(ge=0)] = 0
    fail: FailureCode | None = None
    fail_times: Annotated[int, Field(ge=1)] | None = None
    hang: bool = False
    kill_engine: bool = False
    kill_worker: bool = False

    @property
    def fault(self) -> bool:
        """Whether a fault is ordered."""
        return self.fail is not None or self.hang or self.kill_engine or self.kill_worker
