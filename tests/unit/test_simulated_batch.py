"""The batch of the simulated engine, in modelled time: no clock, no event loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferfleet.worker.engines.simulated.batch import Batch, Phase, Sequence, Step
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters


def parameters(**changes: float) -> SimulatedParameters:
    defaults = {
        "prefill_tokens_per_s": 1000,
        "decode_step_base_s": 0.010,
        "decode_step_per_sequence_s": 0.001,
        "kv_cache_tokens": 1000,
        "max_model_len": 1000,
    }
    return SimulatedParameters.model_validate(defaults | changes)


def batch(*, max_running: int = 64, **changes: float) -> Batch:
    return Batch(parameters=parameters(**changes), max_running=max_running)


def sequence(*, prompt_tokens: int = 10, target: int = 5, **more: object) -> Sequence:
    return Sequence(prompt_tokens=prompt_tokens, target=target, **more)  # type: ignore[arg-type]


def step(batch: Batch) -> Step:
    step = batch.schedule()
    assert step is not None
    batch.finish(step)
    return step


def run_to_end(batch: Batch) -> list[Step]:
    steps: list[Step] = []
    while (step := batch.schedule()) is not None:
        batch.finish(step)
        steps.append(step)
        assert len(steps) < 100_000, "the batch goes round in circles"
    return steps


def total_s(steps: list[Step]) -> float:
    return sum(step.duration_s for step in steps)


def test_a_step_costs_its_prompt_tokens_its_weights_and_each_sequence() -> None:
    model = parameters()

    assert model.step_s(prefill_tokens=500, decoding=0) == pytest.approx(0.5)
    assert model.step_s(prefill_tokens=0, decoding=1) == pytest.approx(0.011)
    assert model.step_s(prefill_tokens=100, decoding=20) == pytest.approx(0.1 + 0.010 + 0.020)


def test_the_first_token_comes_with_the_prompt_and_each_other_takes_a_step() -> None:
    one = batch()
    one.add(sequence(prompt_tokens=100, target=4))

    steps = run_to_end(one)

    assert [s.duration_s for s in steps] == pytest.approx([0.1, 0.011, 0.011, 0.011])


def test_sixty_four_answers_share_the_cost_of_reading_the_weights() -> None:
    together = batch(kv_cache_tokens=10_000)
    for _ in range(64):
        together.add(sequence(prompt_tokens=1, target=101))

    assert total_s(run_to_end(together)) == pytest.approx(0.064 + 100 * (0.010 + 64 * 0.001))


def test_a_faster_engine_waits_less_and_speed_zero_not_at_all() -> None:
    assert parameters().real_s(2.0) == 2.0
    assert parameters(speed=10).real_s(2.0) == pytest.approx(0.2)
    assert parameters(speed=0).real_s(2.0) == 0.0


def test_an_idle_batch_has_nothing_to_do() -> None:
    assert batch().schedule() is None


def test_a_long_prompt_is_computed_in_pieces_while_others_keep_generating() -> None:
    shared = batch(max_num_batched_tokens=100)
    short = sequence(prompt_tokens=10, target=50)
    long = sequence(prompt_tokens=250, target=1)
    shared.add(short)
    step(shared)
    shared.add(long)

    pieces = [sum(tokens for _, tokens in step(shared).prefills) for _ in range(3)]

    assert pieces == [100, 100, 50]
    assert short.generated == 4
    assert long.phase is Phase.ENDED


def test_the_budget_of_a_step_limits_who_is_admitted_in_it() -> None:
    crowded = batch(max_num_batched_tokens=25)
    for _ in range(4):
        crowded.add(sequence(prompt_tokens=10))

    step(crowded)

    assert (crowded.running, crowded.waiting) == (3, 1)


def test_the_most_urgent_starts_first_and_equals_start_in_order_of_arrival() -> None:
    single = batch(max_running=1)
    order: list[str] = []
    for name, priority in [("low", 1), ("normal", 4), ("urgent", 9), ("normal later", 4)]:
        single.add(sequence(target=1, priority=priority, on_progress=lambda name=name: order.append(name)))

    run_to_end(single)

    assert order == ["urgent", "normal", "normal later", "low"]


def test_a_full_batch_does_not_displace_anyone_for_an_urgent_request() -> None:
    full = batch(max_running=1)
    running = sequence(priority=0, target=3)
    full.add(running)
    step(full)
    urgent = sequence(priority=9)
    full.add(urgent)

    step(full)

    assert running.phase is Phase.RUNNING
    assert urgent.phase is Phase.WAITING


def test_when_memory_runs_out_the_least_urgent_and_latest_is_sent_back_and_still_finishes() -> None:
    tight = batch(kv_cache_tokens=60, max_model_len=60)
    urgent = sequence(prompt_tokens=10, target=20, priority=9)
    early = sequence(prompt_tokens=10, target=20, priority=1)
    late = sequence(prompt_tokens=10, target=20, priority=1)
    tight.add(urgent)
    tight.add(early)
    tight.add(late)
    while not tight.preemptions:
        step(tight)

    assert late.phase is Phase.WAITING
    assert (urgent.phase, early.phase) == (Phase.RUNNING, Phase.RUNNING)
    paid_before = late.generated

    steps = run_to_end(tight)

    assert [each.generated for each in (urgent, early, late)] == [20, 20, 20]
    again = [tokens for s in steps for each, tokens in s.prefills if each is late]
    assert again == [10 + paid_before], "its prompt and what it had generated are computed again"


def test_a_request_that_does_not_fit_in_memory_waits_for_those_that_run() -> None:
    tight = batch(kv_cache_tokens=60, max_model_len=60)
    first = sequence(prompt_tokens=40, target=3)
    second = sequence(prompt_tokens=40, target=3)
    tight.add(first)
    tight.add(second)

    step(tight)

    assert (tight.running, tight.waiting) == (1, 1)
    run_to_end(tight)
    assert second.generated == 3
    assert tight.preemptions == 0


def test_a_request_that_leaves_frees_its_slot_and_its_memory_at_once() -> None:
    single = batch(max_running=1)
    running, waiting = sequence(), sequence()
    single.add(running)
    single.add(waiting)
    scheduled = single.schedule()
    assert scheduled is not None

    single.remove(running)

    assert (single.running, single.kv_cache_usage) == (0, 0.0)
    single.finish(scheduled)
    assert running.generated == 0, "a token that was being computed goes nowhere"
    step(single)
    assert waiting.generated == 1


def test_a_request_that_leaves_the_queue_never_runs() -> None:
    single = batch(max_running=1)
    running, waiting = sequence(), sequence()
    single.add(running)
    single.add(waiting)

    single.remove(waiting)
    single.remove(waiting)
    run_to_end(single)

    assert waiting.generated == 0
    assert (single.running, single.waiting) == (0, 0)


def test_a_hanging_request_keeps_its_slot_and_the_others_go_on() -> None:
    shared = batch()
    hanging, other = sequence(target=2, hangs=True), sequence(target=9)
    shared.add(hanging)
    shared.add(other)

    run_to_end(shared)

    assert (hanging.generated, hanging.phase) == (2, Phase.RUNNING)
    assert other.phase is Phase.ENDED
    shared.remove(hanging)
    assert shared.running == 0


def test_a_continued_answer_computes_its_prompt_and_earlier_tokens_but_generates_only_the_rest() -> None:
    one = batch()
    continued = sequence(prompt_tokens=100, generated=40, target=43)
    one.add(continued)

    steps = run_to_end(one)

    assert [s.duration_s for s in steps] == pytest.approx([0.140, 0.011, 0.011])


def test_a_slow_request_makes_every_step_with_it_as_slow() -> None:
    shared = batch()
    shared.add(sequence(target=2, step_delay_s=0.5))
    shared.add(sequence(target=3))

    assert [s.least_s for s in run_to_end(shared)] == [0.5, 0.5, 0.0]


@given(
    arrivals=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 9), st.integers(0, 20)),
        max_size=30,
    ),
    max_running=st.integers(1, 8),
    budget=st.integers(1, 120),
)
def test_every_request_ends_within_the_limits_of_slots_and_memory(
    arrivals: list[tuple[int, int, int, int]], max_running: int, budget: int
) -> None:
    model = parameters(kv_cache_tokens=120, max_model_len=120, max_num_batched_tokens=budget)
    mixed = Batch(parameters=model, max_running=max_running)
    all_of_them: list[Sequence] = []
    for prompt_tokens, target, priority, steps_before_next in arrivals:
        each = Sequence(prompt_tokens=prompt_tokens, target=target, priority=priority)
        all_of_them.append(each)
        mixed.add(each)
        for _ in range(steps_before_next):
            if (scheduled := mixed.schedule()) is not None:
                assert mixed.running <= max_running
                assert mixed.kv_cache_usage <= 1
                assert sum(tokens for _, tokens in scheduled.prefills) <= budget
                mixed.finish(scheduled)

    run_to_end(mixed)

    assert all(each.phase is Phase.ENDED and each.generated == each.target for each in all_of_them)
    assert (mixed.running, mixed.waiting, mixed.kv_cache_usage) == (0, 0, 0.0)
