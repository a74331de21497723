"""What runs cost, and the limit of that."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from inferfleet.agents import Agent, Prices, RunLimits
from inferfleet.agents.history import AskModel, History
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.problems import describe
from inferfleet.schemas.result import Usage
from inferfleet.schemas.run import (
    STEP,
    ModelAnswered,
    RunFailure,
    RunFailureCode,
    RunOrder,
    RunResult,
    Step,
    ToolEnded,
)

PRICES: dict[str, Any] = {"input": 0.1, "output": "0.4"}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def asked(cost: str | None) -> list[Step]:
    """An answer that cost this, with one call that has a result."""
    message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    answered = ModelAnswered(message=message, tokens=10, cost=None if cost is None else Decimal(cost))
    return [answered, ToolEnded(call="0.0", content="seen")]


def next_of(*steps: Step, **limits: Any) -> object:
    return History(RunLimits.model_validate(limits), steps).next()


def test_tokens_cost_what_their_prices_say_exactly() -> None:
    usage = Usage(prompt_tokens=7, cached_tokens=4, completion_tokens=3)
    assert Prices.model_validate(PRICES).cost_of(usage) == Decimal("0.0000019")
    cheaper = Prices(input=Decimal("0.1"), cached_input=Decimal("0.01"), output=Decimal("0.4"))
    assert cheaper.cost_of(usage) == Decimal("0.00000154")
    # An engine that counts more cached tokens than tokens makes nothing cheaper than free.
    assert cheaper.cost_of(Usage(prompt_tokens=1, cached_tokens=5)) == Decimal("0.00000001")


def test_many_small_costs_are_summed_without_rounding() -> None:
    history = History(RunLimits())
    assert history.cost is None
    history.add(asked(None)[0])
    assert history.cost is None
    history.add(ToolEnded(call="0.0", content="", cost=Decimal(1000000)))
    for _ in range(10):
        history.add(ModelAnswered(message={}, tokens=1, cost=Decimal("0.0000001")))
    assert history.cost == Decimal("1000000.000001")


def test_a_run_goes_on_below_its_limit_and_ends_at_it() -> None:
    assert next_of(*asked("0.499999999"), max_cost=0.5, prices=PRICES) == AskModel(None)
    assert next_of(*asked("0.5"), prices=PRICES) == AskModel(None)
    failure = next_of(*asked("0.50"), max_cost=0.5, prices=PRICES)
    assert isinstance(failure, RunFailure)
    assert failure.code is RunFailureCode.MAX_COST
    assert failure.message == "the run has cost 0.5 (max_cost=0.5)"


def test_a_limit_without_prices_calls_no_model() -> None:
    failure = next_of(max_cost=2)
    assert isinstance(failure, RunFailure)
    assert failure.code is RunFailureCode.MAX_COST
    assert "max_cost=2 needs prices" in failure.message
    with pytest.raises(ConfigurationError, match="agent clerk: max_cost=2 needs prices"):
        Agent(name="clerk", limits=RunLimits(max_cost=Decimal(2)))


def test_whoever_starts_a_run_lowers_its_limit_and_changes_no_price_of_its_agent() -> None:
    own = RunLimits.model_validate({"max_cost": 2, "prices": PRICES})
    free = {"input": 0, "output": 0}
    for asks, most in ((1, Decimal(1)), (3, Decimal(2))):
        limits = RunLimits.model_validate({"max_cost": asks, "prices": free}).within(own)
        assert (limits.max_cost, limits.prices) == (most, own.prices)
    assert own.within(RunLimits()) == own
    assert RunLimits().within(own) == own


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_cost": -1}, "max_cost: -1 is too low; it must be above 0"),
        ({"max_cost": "nan"}, "max_cost: nan is not a finite number"),
        ({"max_cost": float("inf")}, "max_cost: inf is not a finite number"),
        ({"max_cost": "much"}, "max_cost: must be a number, not a string"),
        ({"max_cost": "0.0000001"}, "max_cost: .*no more than 6 decimal places"),
        ({"max_cost": 1, "prices": {"input": -1, "output": 1}}, "prices.input: -1 is below the minimum 0"),
        ({"max_cost": 1, "prices": {"input": 1}}, "prices.output: is missing"),
        ({"prices": PRICES}, "limits.prices: are given without a limit: give max_cost as well"),
    ],
)
def test_an_invalid_limit_is_an_error_that_names_it(limits: dict[str, Any], told: str) -> None:
    order = {"id": new_job_id(), "agent": "a", "input": "", "created_ms": 0, "limits": limits}
    with pytest.raises(ValidationError) as refused:
        RunOrder.model_validate(order)
    assert pytest.raises(ValueError, match=told).matches(ValueError(describe(refused.value)))


def test_amounts_are_json_without_an_exponent_and_records_without_them_are_read() -> None:
    result = RunResult(run_id=new_job_id(), state="failed", cost=Decimal("1E-7"))
    assert orjson.loads(result.model_dump_json())["cost"] == "0.0000001"
    assert RunResult.model_validate_json(result.model_dump_json()) == result
    order = RunOrder.model_validate(
        {
            "id": new_job_id(),
            "agent": "a",
            "input": "",
            "created_ms": 0,
            "limits": {"max_cost": 0.25, "prices": PRICES},
        }
    )
    assert RunOrder.model_validate_json(order.model_dump_json()) == order
    step = STEP.validate_json('{"kind": "tool_ended", "call": "0.0", "content": "", "tokens": 1}')
    assert isinstance(step, ToolEnded)
    assert step.cost is None
