"""Each command that a runbook names runs as it is written, for whoever was woken by an alert."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.integration.conftest import PATIENCE_S, RunCommand, StartWorker, chat

from inferfleet.producer import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import Job
from inferfleet.wire.redis.rollouts import lead_rollout

RUNBOOKS = Path(__file__).parents[2] / "docs/how-to/runbooks.md"
COMMANDS = list(dict.fromkeys(re.findall(r"`inferfleet ([^`]+)`", RUNBOOKS.read_text())))


@pytest.mark.store
async def test_each_command_of_the_runbooks_runs_as_it_is_written(
    inferfleet: RunCommand, start_worker: StartWorker, fleet: Fleet, pool: str
) -> None:
    canary = f"{pool}.new"
    await start_worker(worker_id=f"w-{pool}")
    body = chat(simulated={"fail": "engine_error"})
    failing = [Job(pool=pool, body=body, max_attempts=1) for command in COMMANDS if "JOB" in command]
    letters = iter(await fleet.submit_many(failing))
    await fleet.wait_many(failing, timeout_s=PATIENCE_S)
    await fleet.declare_pool(canary)
    await fleet.pause_pool(canary)
    await Rollouts(fleet).start(pool, to=canary, steps=[100], interval_s=3600, allow_no_workers=True)
    await lead_rollout(fleet.pipeline, pool, controller="a gateway", lease_s=PATIENCE_S)
    for command in COMMANDS:
        named = {"POOL": pool, "CANARY": canary, "ID": f"w-{pool}"}
        if "JOB" in command:
            named["JOB"] = next(letters).id
        words = shlex.split(command)
        for name, value in named.items():
            words = [re.sub(rf"\b{name}\b", value, word) for word in words]

        ended = await inferfleet(*words)

        # What other tests have left may be an error to the doctor.
        assert ended.code in ({0, 1} if command == "doctor" else {0}), (command, ended)
