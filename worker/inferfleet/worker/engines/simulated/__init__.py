"""A deterministic stand-in for a continuous-batching engine: for tests, demos and capacity planning.

The text is a pure function of the request, and the timing follows a small model of a GPU;
``docs/simulated-engine.md`` documents both. The answers are meaningless words.

    engine       the ``Engine`` itself: one batch loop, one iterator per request
    batch        the scheduler: which sequences run, wait or are preempted; it has no clock
    parameters   the engine's arguments, and how long a step takes
    request      which fields of a body count, and which are refused (``refusal``)
    hooks        faults and lengths that a body can order, for tests
    prompt       how many tokens a prompt has, and what the answer depends on
    answer       the whole answer, known before the first token, and how it is cut into chunks
    vocabulary   token ids and their bytes
    embedding    vectors
    scoring      scores of two texts
    response     the response bodies, and what tests should expect of them
"""

from __future__ import annotations

from inferfleet.worker.engines.simulated.engine import SimulatedEngine
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.response import expected_response, expected_text

__all__ = ["SimulatedEngine", "SimulatedParameters", "expected_response", "expected_text"]
