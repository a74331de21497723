"""A deterministic stand-in for a continuous-batching engine: for tests, demos and capacity planning.

The text is a pure function of the request, the timing a small model of a GPU, and both are documented
in ``docs/simulated-engine.md``. It answers nothing that anyone would want to read.

    engine       the ``Engine`` itself: one batch loop, one iterator per request
    batch        the scheduler: who runs, who waits, who is preempted; no clock of its own
    parameters   the engine's arguments and how long a step takes
    request      what is read of a body, and what is refused (``refusal``)
    hooks        faults and lengths that a body can order, for tests
    prompt       how many tokens a prompt has, and what the answer depends on
    answer       what will be said, known before the first token, and how it is cut into chunks
    vocabulary   token ids and their bytes
    embedding    vectors
    scoring      how well two texts go together
    response     the response bodies, and what tests should expect of them
"""

from __future__ import annotations

from inferfleet.worker.engines.simulated.engine import SimulatedEngine
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.response import expected_response, expected_text

__all__ = ["SimulatedEngine", "SimulatedParameters", "expected_response", "expected_text"]
