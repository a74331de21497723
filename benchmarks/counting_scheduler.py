"""vLLM's scheduler, which writes down how many tokens each step computes, and how many it generates.

A benchmark names this class in ``engine_args``. The file in ``BENCH_STEPS`` gets a line for each step.
Only the scheduler knows what was computed for a request that was aborted.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class CountingScheduler(Scheduler):  # type: ignore[misc]  # vLLM is untyped here
    """The scheduler that vLLM has on the CPU."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step, and write down ``GENERATED COMPUTED``."""
        step = super().schedule(*args, **kwargs)
        if step.total_num_scheduled_tokens:
            # A part of a prompt generates nothing.
            requests = (self.requests[request_id] for request_id in step.num_scheduled_tokens)
            generated = sum(not request.is_prefill_chunk for request in requests)
            with Path(os.environ["BENCH_STEPS"]).open("a") as steps:
                print(generated, step.total_num_scheduled_tokens, file=steps)
        return step
