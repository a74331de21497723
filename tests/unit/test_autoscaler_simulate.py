"""The autoscaler in simulated time: what a plan can be trusted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferfleet.local.autoscaler.outcome import SimulationResult
from inferfleet.local.autoscaler.profile import PROFILES, EngineProfile, read_profile
from inferfleet.local.autoscaler.scaled_object import ScaledObject, parse_scaled_object
from inferfleet.local.autoscaler.simulate import simulate
from inferfleet.local.autoscaler.simulated_replica import SimulatedJob
from inferfleet.local.autoscaler.simulated_work import SimulatedWork
from inferfleet.local.autoscaler.trace import Arrival, read_trace
from inferfleet.schemas.errors import ConfigurationError

FAST = EngineProfile(load_s=20, max_running=8, look_ahead=2, drain_timeout_s=5)


def scaled_object(
    *more: dict[str, Any], value: int = 20, protocol: str = "http", **spec: Any
) -> ScaledObject:
    rabbitmq = {
        "type": "rabbitmq",
        "metadata": {
            "queueName": "inferfleet.jobs.chat",
            "protocol": protocol,
            "mode": "QueueLength",
            "value": str(value),
        },
    }
    return parse_scaled_object(
        {
            "metadata": {"name": "worker"},
            "spec": {
                "scaleTargetRef": {"name": "worker"},
                "triggers": [rabbitmq, *more],
                "maxReplicaCount": 4,
            }
            | spec,
        }
    )


def burst(jobs: int, *, at_s: float = 0.0, output_tokens: int = 200, priority: int = 4) -> list[Arrival]:
    return [
        Arrival(time_s=at_s, prompt_tokens=100, output_tokens=output_tokens, priority=priority)
        for _ in range(jobs)
    ]


def replicas(outcome: SimulationResult) -> list[int]:
    return [change.after for change in outcome.changes]


def test_a_burst_takes_the_fleet_from_zero_to_the_maximum_and_back_and_loses_nothing() -> None:
    outcome = simulate(scaled_object(), burst(2000), FAST)

    assert len(outcome.finished) == 2000
    assert replicas(outcome)[0] == 1
    assert max(replicas(outcome)) == 4
    assert replicas(outcome)[-1] == 0
    assert outcome.summary()["unfinished"] == 0
    assert outcome.summary()["queue_max"] == 2000


def test_the_same_input_gives_the_same_outcome() -> None:
    first, again = (simulate(scaled_object(), burst(300), FAST).summary() for _ in range(2))

    assert first == again


def test_nobody_starts_before_the_first_replica_has_loaded() -> None:
    outcome = simulate(scaled_object(), burst(5), FAST)

    # One look of KEDA at 0 s, before the statistics have the jobs, and one at 30 s; then the load.
    assert min(outcome.waits_s) == pytest.approx(30 + 20)


def test_over_amqp_the_jobs_are_seen_at_once() -> None:
    outcome = simulate(scaled_object(protocol="amqp", minReplicaCount=1), burst(100), FAST)

    assert outcome.changes[1].at_s == 0


def test_a_slower_start_costs_waiting_and_gpu_hours() -> None:
    quick, slow = (
        simulate(scaled_object(), burst(1000), FAST.model_copy(update={"load_s": load_s}))
        for load_s in (10, 300)
    )

    assert slow.summary()["wait_s"]["p50"] > quick.summary()["wait_s"]["p50"] + 200
    assert slow.gpu_hours > quick.gpu_hours


def test_urgent_jobs_wait_less() -> None:
    outcome = simulate(scaled_object(), [*burst(500, priority=1), *burst(50, priority=9)], FAST)

    waits = {
        priority: [(job.started_at or 0) for job in outcome.finished if job.arrival.priority == priority]
        for priority in (1, 9)
    }
    assert max(waits[9]) < sum(waits[1]) / len(waits[1])


def test_a_replica_that_is_drained_while_busy_hands_over_and_every_token_is_generated_once() -> None:
    jobs = burst(40, output_tokens=8000)

    outcome = simulate(
        scaled_object(
            value=10,
            advanced={
                "horizontalPodAutoscalerConfig": {
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}
                }
            },
        ),
        [*jobs, *burst(1, at_s=150)],
        FAST,
    )

    assert outcome.handed_over > 0
    assert len(outcome.finished) == 41
    assert all(job.generated <= job.arrival.output_tokens for job in outcome.finished)


def test_counting_ready_jobs_alone_scales_a_busy_fleet_to_zero() -> None:
    """keda#5050: over amqp a fleet that has taken everything looks idle."""
    long = burst(4, output_tokens=20_000)
    by = {
        protocol: simulate(scaled_object(protocol=protocol, cooldownPeriod=30), long, FAST)
        for protocol in ("amqp", "http")
    }

    assert by["amqp"].handed_over > 0
    assert by["http"].handed_over == 0


def test_what_never_starts_is_reported_and_not_waited_for() -> None:
    asleep = parse_scaled_object(
        {
            "metadata": {"name": "worker", "annotations": {"autoscaling.keda.sh/paused-replicas": "0"}},
            "spec": {
                "scaleTargetRef": {"name": "worker"},
                "triggers": [
                    {
                        "type": "rabbitmq",
                        "metadata": {"queueName": "inferfleet.jobs.chat", "protocol": "http"},
                    }
                ],
            },
        }
    )

    assert simulate(asleep, burst(3), FAST).summary()["unfinished"] == 3


def test_the_exporters_gauges_can_be_simulated() -> None:
    backlog = {
        "type": "prometheus",
        "metadata": {
            "serverAddress": "http://prometheus:9090",
            "query": (
                'max(inferfleet_queue_backlog_seconds{pool="chat"}) '
                '* max(inferfleet_workers{pool="chat",phase="ready"})'
            ),
            "threshold": "10",
            "ignoreNullValues": "false",
        },
    }
    without, with_it = (
        simulate(scaled_object(*triggers, value=1000), burst(2000), FAST) for triggers in ((), (backlog,))
    )

    assert max(replicas(without)) == 2
    assert max(replicas(with_it)) == 4


def test_the_backlog_of_long_jobs_is_longer() -> None:
    """Before one of them has ended: what is known of them is that their requests allow long answers."""

    def ended(tokens: int, most: int) -> SimulatedJob:
        arrival = Arrival(time_s=0, prompt_tokens=100, output_tokens=tokens, max_tokens=most)
        return SimulatedJob(arrival=arrival, number=0)

    work = SimulatedWork()
    short, long = ended(23, 32), ended(973, 1024)
    assert work.heaviness([long]) == 1
    for job in (short, long):
        work.ended(job)
    # The jobs that have ended are 256 and 4,056 tokens of a prompt.
    assert work.heaviness([short, short]) == pytest.approx(256 / 2156)
    assert work.heaviness([long, long]) == pytest.approx(4056 / 2156)
    assert work.heaviness([short, long] * 1000) == pytest.approx(1, rel=0.2)
    assert work.heaviness([]) == 1


def test_any_other_query_cannot_be_simulated() -> None:
    other = {
        "type": "prometheus",
        "metadata": {"serverAddress": "http://prometheus:9090", "query": "up", "threshold": "10"},
    }

    with pytest.raises(ConfigurationError, match="cannot be simulated"):
        simulate(scaled_object(other), burst(1), FAST)


def test_a_trace_is_read_in_order_of_time_and_for_one_pool(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "time_s,pool,priority,prompt_tokens,output_tokens,max_tokens\n"
        "107.5,chat,9,10,20,\n101,embed,4,1,1,1\n105,chat,4,30,40,64\n106,,1,50,60,\n"
    )

    assert read_trace(file, pool="chat") == [
        Arrival(time_s=0, prompt_tokens=30, output_tokens=40, priority=4, max_tokens=64),
        Arrival(time_s=1, prompt_tokens=50, output_tokens=60, priority=1),
        Arrival(time_s=2.5, prompt_tokens=10, output_tokens=20, priority=9),
    ]


def test_a_trace_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(b"\xef\xbb\xbftime_s,priority,prompt_tokens,output_tokens\r\n3,4,10,20\r\n\r\n")

    assert read_trace(file, pool="chat") == [Arrival(time_s=0, prompt_tokens=10, output_tokens=20)]


def test_a_job_that_no_replica_could_run_is_refused() -> None:
    too_long = Arrival(time_s=7, prompt_tokens=30_000, output_tokens=2769)

    with pytest.raises(ConfigurationError, match=r"the job at 7 s .* max_model_len is 32768"):
        simulate(scaled_object(), [too_long], FAST)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("time_s,priority,prompt_tokens\n", "has no column output_tokens"),
        ("time_s,priority,prompt_tokens,output_tokens\n", "has no arrivals for the pool 'chat'"),
        ("time_s,priority,prompt_tokens,output_tokens\n0,4,ten,1\n", "line 2: prompt_tokens is 'ten'"),
        (
            "time_s,priority,prompt_tokens,output_tokens,max_tokens\n0,4,10,20,19\n",
            "line 2: max_tokens is 19",
        ),
        ("time_s,priority,prompt_tokens,output_tokens\n0,4,10\n", "line 2: output_tokens is ''"),
        # An arrival that never comes would be waited for.
        ("time_s,priority,prompt_tokens,output_tokens\ninf,4,1,1\n", "line 2: time_s is inf"),
        ("time_s,priority,prompt_tokens,output_tokens\nnan,4,1,1\n", "line 2: time_s is nan"),
        ("time_s;priority;prompt_tokens;output_tokens\n0;4;1;1\n", "has no column time_s"),
        (
            "time_s,priority,prompt_tokens,output_tokens\n0,4,1,1\n0,12,1,1\n",
            "line 3: tokens must be at least 1",
        ),
    ],
)
def test_a_wrong_trace_is_refused_with_the_line(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(content)

    with pytest.raises(ConfigurationError, match=problem):
        read_trace(file, pool="chat")


def test_a_profile_is_a_name_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{"load_s": 300, "max_running": 128, "decode_step_base_s": 0.02}')

    assert read_profile("llama-3.1-8b-h100") is PROFILES["llama-3.1-8b-h100"]
    assert read_profile(str(file)) == EngineProfile(load_s=300, max_running=128, decode_step_base_s=0.02)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ('{"speeed": 1}', "speeed: Extra inputs are not permitted; an engine profile has"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(content)

    with pytest.raises(ConfigurationError, match=problem):
        read_profile(str(file))
    with pytest.raises(ConfigurationError, match="neither a file nor one of llama"):
        read_profile("gpt-9")


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_simulation_can_be_drawn(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    from inferfleet.local.autoscaler.plot import check_plot, draw

    file = tmp_path / f"plan.{kind}"
    check_plot(file)
    draw(simulate(scaled_object(), burst(200), FAST), file, title="worker")

    assert file.read_bytes().startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    with pytest.raises(ConfigurationError, match=r"must end in \.png or \.svg"):
        check_plot(tmp_path / "plan.pdf")


def test_a_long_wait_adds_workers_beyond_those_that_the_queues_length_asks_for() -> None:
    waiting = {
        "type": "rabbitmq",
        "metricType": "Value",
        "metadata": {
            "queueName": "inferfleet.jobs.chat",
            "protocol": "http",
            "mode": "ExpectedQueueConsumptionTime",
            "excludeUnacknowledged": "true",
            "value": "10",
        },
    }
    jobs = burst(500, output_tokens=400)

    by_length = simulate(scaled_object(value=1000, minReplicaCount=1), jobs, FAST)
    by_wait = simulate(scaled_object(waiting, value=1000, minReplicaCount=1), jobs, FAST)

    assert replicas(by_length) == [1]
    assert max(replicas(by_wait)) == 4
    assert replicas(by_wait)[-1] == 1, "without deliveries nothing keeps the workers"
