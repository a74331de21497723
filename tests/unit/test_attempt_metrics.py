"""The metrics of attempts: what exists before the first job, and how many tenants have their own series."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client import Metric

from inferfleet.schemas import FailureCode, JobState, Result, Usage
from inferfleet.schemas.job import new_job_id
from inferfleet.worker.attempt_metrics import MAX_TENANTS, OTHER, AttemptMetrics


def families(metrics: AttemptMetrics) -> dict[str, Metric]:
    return {family.name: family for family in metrics.families("default")}


def test_every_series_whose_labels_are_known_exists_at_0() -> None:
    found = families(AttemptMetrics())

    assert {sample.value for family in found.values() for sample in family.samples} == {0}
    ends = {sample.labels["code"] for sample in found["inferfleet_jobs_finished"].samples}
    assert ends == {"", *FailureCode}


def test_tenants_beyond_the_first_hundred_share_the_series_of_other() -> None:
    metrics = AttemptMetrics()
    for number in range(MAX_TENANTS + 5):
        run: Any = SimpleNamespace(job=SimpleNamespace(tenant=f"tenant-{number}"))
        usage = Usage(prompt_tokens=3)
        metrics.on_end(run, Result(job_id=new_job_id(), state=JobState.SUCCEEDED, usage=usage))

    samples = families(metrics)["inferfleet_tenant_tokens"].samples
    prompts = {it.labels["tenant"]: it.value for it in samples if it.labels["kind"] == "prompt"}
    assert len(prompts) == MAX_TENANTS + 1
    assert prompts["tenant-99"] == 3
    assert prompts[OTHER] == 5 * 3
