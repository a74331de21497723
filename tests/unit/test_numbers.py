"""Nobody who gives a boolean for a number gets 1 or 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from inferfleet.agents.settings import RunnerSettings
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.api_keys import ApiKey
from inferfleet.gateway.run_requests import AskedLimits, ReplayRun, StartRun
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer.job_making import make_job
from inferfleet.schemas.control import SwapModel
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import Job
from inferfleet.schemas.retrieval import Document, IndexOptions
from inferfleet.schemas.rollout import Rollout
from inferfleet.schemas.run import RunLimits, RunOrder, RunReplay
from inferfleet.schemas.session import SessionExport
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.schemas.wire_model import GivenModel
from inferfleet.worker.engines.openai.arguments import OpenaiArguments
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters

OUR_OWN = {"step", "work_done", "created_ms", "deadline_ms"}
"""Numbers that only processes of a fleet write."""


def given(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for below in model.__subclasses__():
        if below.__module__.startswith("inferfleet."):
            yield from given(below)


MODELS: set[type[BaseModel]] = {
    *given(GivenModel),
    *(ApiKey, AskedLimits, ReplayRun, Rollout, RunOrder, RunReplay, SessionExport, StartRun, SwapModel),
    *(ExporterSettings, GatewaySettings, RunnerSettings, WorkerSettings),
    *(OpenaiArguments, SimulatedParameters),
}


def test_all_that_programs_make_are_among_them() -> None:
    assert {Document, IndexOptions, Job, RunLimits} < MODELS


@pytest.mark.parametrize("model", sorted(MODELS, key=repr))
def test_a_number_may_not_be_a_boolean(model: type[BaseModel]) -> None:
    taken: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in OUR_OWN:
            try:
                wanted: Any = Annotated[field.annotation, None, *field.metadata]
                taken[name] = TypeAdapter(wanted).validate_python(True)
            except ValidationError:
                continue
    assert {name: value for name, value in taken.items() if value is not True} == {}


def test_the_error_names_the_field_and_the_value() -> None:
    with pytest.raises(InvalidJobError, match=r"^timeout_s: must be a number, not true$"):
        make_job("hi", {"timeout_s": True}, max_body_bytes=1000)
    with pytest.raises(ValidationError, match="valid number"):
        WorkerSettings(max_running=True)
