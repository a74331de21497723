"""A short soak, and the command around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferfleet.local.chaos.cluster_faults import ClusterFault
from inferfleet.local.chaos.soak import SETTLE_S, SoakOptions, Topology, soak
from inferfleet.local.services import ServicesChoice
from inferfleet.local.services.launcher import source_of
from inferfleet.schemas.settings import QueueType

SEED = 7


# A job that is lost shows when the wait for its end is over, and then the findings say which.
@pytest.mark.timeout(120 + 2 * SETTLE_S)
@pytest.mark.parametrize("another_model", [False, True], ids=["one model", "two models"])
async def test_no_promise_is_broken_while_everything_breaks(tmp_path: Path, *, another_model: bool) -> None:
    # Given services that can be killed
    if (unavailable_reason := source_of(ServicesChoice.NATIVE).unavailable_reason()) is not None:
        pytest.skip(unavailable_reason)
    options = SoakOptions(
        seed=SEED,
        minutes=0.4,
        jobs=240,
        workers=3,
        empty_redis=not another_model,
        another_model=another_model,
    )

    # When jobs run through half a minute of faults
    report = await soak(options, folder=tmp_path, say=print)

    # Then nothing was lost, doubled, or wrong
    assert report.findings == ()
    assert report.accepted == options.jobs
    assert report.waste.generated > 0
    # And it was a test: things did go wrong.
    assert sum(report.faults.values()) >= 5


@pytest.mark.timeout(360 + 2 * SETTLE_S)
async def test_no_promise_is_broken_while_nodes_of_a_cluster_die_and_forget(tmp_path: Path) -> None:
    # Given three nodes of each service
    if (unavailable_reason := source_of(ServicesChoice.NATIVE).unavailable_reason()) is not None:
        pytest.skip(unavailable_reason)
    faults = {
        ClusterFault.BROKER_NODE_KILL,
        ClusterFault.QUEUE_DELETE,
        ClusterFault.REDIS_LAGGING_FAILOVER,
        ClusterFault.REDIS_MASTER_PART,
    }
    options = SoakOptions(
        seed=SEED,
        minutes=1.0,
        jobs=300,
        workers=3,
        queue_type=QueueType.QUORUM,
        topology=Topology.CLUSTER,
        cluster_faults=frozenset(faults),
    )

    # When jobs run through the loss of nodes, of messages, and of answered writes
    report = await soak(options, folder=tmp_path, say=print)

    # Then nothing was lost, doubled, or wrong, and each fault has happened
    assert report.findings == ()
    assert report.accepted == options.jobs
    assert report.untested == []
    assert faults <= {fault for fault in ClusterFault if report.faults.get(fault)}
