"""A deterministic stand-in for a continuous-batching engine: for tests, demos and capacity planning.

The text is a pure function of the request, the timing a small model of a GPU, and both are documented
in ``docs/simulated-engine.md``. It answers nothing that anyone would want to read.

    engine       the ``Engine`` itself: one batch loop, and the faults that tests ask for
    batch        the scheduler: who runs, who waits, who is preempted; no clock of its own
    parameters   the engine's arguments and how long a step takes
    request      what is read of an OpenAI body, and what is refused
    answer       what will be said, known before the first token, and how it is cut into chunks
    response     the OpenAI response bodies, and ``expected_response`` for tests
    vocabulary   token ids and their bytes
"""

from __future__ import annotations

from inferfleet.worker.engines.simulated.engine import SimulatedEngine
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.response import expected_response, expected_text

__all__ = ["SimulatedEngine", "SimulatedParameters", "expected_response", "expected_text"]
