"""Continuous batching: decides which sequences run, wait or are preempted.

One step computes prompts of newly admitted sequences, up to a budget of tokens, and the next token of every
other running sequence. The order is that of vLLM's priority scheduling: the most urgent first, then the
oldest. A full batch preempts no sequence; a lack of KV memory does.

The batch has no clock. ``schedule`` returns how long the step takes, the caller lets that time pass (or adds
it up), and ``finish`` yields the tokens. So a test, or a capacity plan, needs no real time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count

from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.prefix_cache import PrefixCache


class Phase(Enum):
    """The phase of a sequence."""

    NEW = auto()
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


def _ignore() -> None:
    """Do nothing."""


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One answer being generated: ``generated`` grows to ``target``, both counted from the first attempt.

    The batch calls ``on_progress`` when there are new tokens. With ``hangs`` the sequence keeps its slot for
    ever at the end. ``blocks`` are the full blocks of its prompt, for the prefix cache, and ``cached`` is how
    many tokens of the prompt were there when it first started.
    """

    prompt_tokens: int
    target: int
    generated: int = 0
    priority: int = 4
    hangs: bool = False
    step_delay_s: float = 0.0
    on_progress: Callable[[], None] = _ignore
    blocks: tuple[bytes, ...] = ()
    cached: int | None = field(default=None, init=False)
    phase: Phase = field(default=Phase.NEW, init=False)
    arrival: int = field(default=0, init=False)
    prefill_left: int = field(default=0, init=False)
    kv_tokens: int = field(default=0, init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the batch. ``duration_s`` is in modelled seconds, ``least_s`` in real ones."""

    duration_s: float
    least_s: float
    prefills: tuple[tuple[Sequence, int], ...]
    decodes: tuple[Sequence, ...]


class Batch:
    """The sequences of one engine. Not thread-safe: one event loop owns it."""

    def __init__(self, *, parameters: SimulatedParameters, max_running: int) -> None:
        self._parameters = parameters
        self._max_running = max_running
        self._heap: list[tuple[int, int, Sequence]] = []
        self._waiting = 0
        self._running: dict[Sequence, None] = {}
        self._kv_tokens = 0
        self._arrivals = count()
        self._preemptions = 0
        self.prefix_cache = PrefixCache()

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences without a slot or without memory."""
        return self._waiting

    @property
    def kv_cache_usage(self) -> float:
        """Share of KV memory in use, 0 to 1."""
        return self._kv_tokens / self._parameters.kv_cache_tokens

    @property
    def preemptions(self) -> int:
        """How often a running sequence was preempted, so that it has to be computed again."""
        return self._preemptions

    def add(self, sequence: Sequence) -> None:
        """Add a sequence, which waits for its turn. A sequence with nothing left to do ends at once."""
        if sequence.generated >= sequence.target and not sequence.hangs:
            sequence.phase = Phase.ENDED
            return
        sequence.arrival = next(self._arrivals)
        self._wait(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence in any phase, and free its slot and memory at once. Safe to repeat."""
        match sequence.phase:
            case Phase.RUNNING:
                self._leave(sequence)
            case Phase.WAITING:
                # It stays in the heap until it comes up, because removing it would take a search.
                self._waiting -= 1
            case Phase.NEW | Phase.ENDED:
                pass
        sequence.phase = Phase.ENDED

    def schedule(self) -> Step | None:
        """Decide the next step, or return ``None`` when there is nothing to compute."""
        decodes, preempted = self._make_room()
        for sequence in decodes:
            sequence.kv_tokens += 1
        self._kv_tokens += len(decodes)
        prefills, budget = self._continue_prefills()
        # As in vLLM, a step that preempts a sequence admits none.
        if not (preempted and decodes):
            prefills += self._admit(budget)
        self.prefix_cache.fit(self._parameters.kv_cache_tokens - self._kv_tokens)
        if not prefills and not decodes:
            return None
        return Step(
            duration_s=self._parameters.step_s(
                prefill_tokens=sum(tokens for _, tokens in prefills), decoding=len(decodes)
            ),
            least_s=max(sequence.step_delay_s for sequence in self._running),
            prefills=tuple(prefills),
            decodes=tuple(decodes),
        )

    def finish(self, step: Step, *, report_every: int = 1) -> int:
        """Give the tokens of a step to the sequences that are still in the batch, and return their number.

        Calls ``on_progress`` only every ``report_every`` tokens, and at the last one.
        """
        produced = 0
        for sequence, tokens in step.prefills:
            if sequence.phase is Phase.RUNNING:
                sequence.prefill_left -= tokens
                if not sequence.prefill_left:
                    self.prefix_cache.add(sequence.blocks)
                    produced += self._produce(sequence, report_every)
        for sequence in step.decodes:
            if sequence.phase is Phase.RUNNING:
                produced += self._produce(sequence, report_every)
        return produced

    def _produce(self, sequence: Sequence, report_every: int) -> bool:
        """Give a sequence its next token; return false if it has all of them."""
        grows = sequence.generated < sequence.target
        sequence.generated += grows
        if sequence.generated >= sequence.target:
            if not sequence.hangs:
                self._leave(sequence)
                sequence.phase = Phase.ENDED
            sequence.on_progress()
        elif not sequence.generated % report_every:
            sequence.on_progress()
        return grows

    def _make_room(self) -> tuple[list[Sequence], bool]:
        """Find the sequences that get a token; preempt the least urgent and latest until all tokens fit."""
        decodes = [s for s in self._running if not s.prefill_left and s.generated < s.target]
        preempted = False
        while self._kv_tokens + len(decodes) > self._parameters.kv_cache_tokens:
            victim = max(self._running, key=lambda s: (-s.priority, s.arrival))
            self._leave(victim)
            self._wait(victim)
            self._preemptions += 1
            preempted = True
            decodes = [s for s in decodes if s is not victim]
        return decodes, preempted

    def _continue_prefills(self) -> tuple[list[tuple[Sequence, int]], int]:
        """Share the step's prompt tokens among unfinished long prompts; also return what is left."""
        budget = self._parameters.max_num_batched_tokens
        shares: list[tuple[Sequence, int]] = []
        for sequence in self._running:
            if sequence.prefill_left and budget:
                tokens = min(sequence.prefill_left, budget)
                budget -= tokens
                shares.append((sequence, tokens))
        return shares, budget

    def _admit(self, budget: int) -> list[tuple[Sequence, int]]:
        """Start waiting sequences in order until one does not fit. A smaller one behind it waits too."""
        shares: list[tuple[Sequence, int]] = []
        while self._heap and budget and len(self._running) < self._max_running:
            sequence = self._heap[0][2]
            if sequence.phase is Phase.WAITING:
                need = sequence.prompt_tokens + sequence.generated + 1
                if self._kv_tokens + need > self._parameters.kv_cache_tokens:
                    break
                self._waiting -= 1
                sequence.phase = Phase.RUNNING
                self._running[sequence] = None
                sequence.kv_tokens = need
                self._kv_tokens += need
                found = self.prefix_cache.find(sequence.blocks, prompt_tokens=sequence.prompt_tokens)
                if sequence.cached is None:
                    sequence.cached = found
                sequence.prefill_left = need - 1 - found
                tokens = min(sequence.prefill_left, budget)
                budget -= tokens
                shares.append((sequence, tokens))
            heapq.heappop(self._heap)
        return shares

    def _wait(self, sequence: Sequence) -> None:
        sequence.phase = Phase.WAITING
        self._waiting += 1
        heapq.heappush(self._heap, (-sequence.priority, sequence.arrival, sequence))

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence]
        self._kv_tokens -= sequence.kv_tokens
        sequence.kv_tokens = 0
