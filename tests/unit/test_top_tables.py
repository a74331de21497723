"""The tables of ``inferfleet top``: which columns a width leaves, and what reaches a terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.integration.test_terminal import ESCAPES, OBEYED

from inferfleet.cli.top.tables import (
    agents_table,
    ended_table,
    outages,
    overview,
    pools_table,
    rollouts_table,
    workers_table,
)
from inferfleet.schemas import JobState
from inferfleet.schemas.fleet_snapshot import (
    AgentQueueView,
    FleetSnapshot,
    Gate,
    GateReason,
    PoolView,
    RolloutView,
)
from inferfleet.schemas.heartbeat import EndedJob, Heartbeat, WorkerPhase
from inferfleet.schemas.rollout import RolloutPhase

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def worker(**changes: object) -> Heartbeat:
    known = {
        "worker_id": "gpu-0",
        "pool": "chat",
        "phase": WorkerPhase.READY,
        "engine": "vllm",
        "model": "Qwen/Qwen3-30B-A3B",
        "version": "0.2.0",
        "kv_cache_usage": 0.5,
        "started_at": NOW,
        "seen_at": NOW,
    }
    return Heartbeat.model_validate(known | changes)


SNAPSHOT = FleetSnapshot(
    at=NOW,
    pools=(
        PoolView(
            pool="chat",
            ready=99_000,
            unfinished={9: 1000, 4: 99_000},
            oldest_waiting_s=3725,
            finished_per_s=12.5,
            backlog_s=8000,
            workers=(worker(),),
            gates=(Gate(reason=GateReason.NO_WORKER, detail="no worker is ready"),),
        ),
    ),
    rollouts=(
        RolloutView(
            pool="chat",
            to="chat-v2",
            phase=RolloutPhase.PAUSED,
            step=2,
            steps=4,
            weight=25,
            since=NOW - timedelta(minutes=20),
            stable_error_rate=0.001,
        ),
    ),
    agents=(
        AgentQueueView(
            queue="night", unfinished=20_000, running=32, waiting_for_people=9_968, oldest_s=90, sampled=True
        ),
    ),
    ended=(
        EndedJob(
            id="01a219e2-577a-7146-b30a-468e3e8de00e",
            pool="chat",
            worker_id="gpu-0",
            priority=4,
            state=JobState.SUCCEEDED,
            ended_at=NOW - timedelta(seconds=3),
        ),
    ),
)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_fits_and_keeps_what_matters_most(width: int) -> None:
    for table in (pools_table, rollouts_table, agents_table, workers_table, ended_table):
        lines = list(table(SNAPSHOT, width).lines())
        assert max(map(len, lines)) <= width
        whole = table(SNAPSHOT)
        titles = table(SNAPSHOT, width).titles
        assert [title for title in whole.titles if title in titles] == list(titles)
    assert {"POOL", "JOBS", "CLOSED GATES"} <= set(pools_table(SNAPSHOT, width).titles)
    assert {"POOL", "ROLLOUT", "WEIGHT"} <= set(rollouts_table(SNAPSHOT, width).titles)
    assert {"QUEUE OF RUNS", "RUNS", "FOR PEOPLE"} <= set(agents_table(SNAPSHOT, width).titles)
    assert {"WORKER", "PHASE"} <= set(workers_table(SNAPSHOT, width).titles)
    assert len(overview(SNAPSHOT)) <= 80


def test_a_table_without_a_width_has_all_columns() -> None:
    heads, cells = pools_table(SNAPSHOT).lines()
    assert heads.split()[:5] == ["POOL", "JOBS", "RUNNING", "QUEUE", "OLDEST"]
    assert cells.split()[:7] == ["chat", "100,000", "0", "99,000", "1", "h", "02"]
    assert cells.endswith("no worker     9:1,000 4:99,000")
    assert list(agents_table(SNAPSHOT).lines())[1].split()[:5] == ["night", "20,000", "~0", "~32", "~9,968"]
    assert "50% ████░░░░" in next(iter(workers_table(SNAPSHOT).rows.values()))


def test_nothing_from_outside_is_obeyed() -> None:
    hostile = SNAPSHOT.model_copy(
        update={
            "pools": (
                PoolView(pool="chat", unfinished={}, workers=(worker(worker_id=ESCAPES, model=ESCAPES),)),
            ),
            "unreachable": {"Redis": ESCAPES},
        }
    )
    shown = [*workers_table(hostile).lines(), *outages(hostile)]
    assert not [sign for sign in OBEYED if sign in "".join(shown)]
    assert "[red]markup[/red]" in shown[-1]
