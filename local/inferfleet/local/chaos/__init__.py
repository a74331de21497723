"""Crash-window tests and the soak: real processes, real faults from outside, and a checker of the history.

No product code knows of this package. A worker or producer gets the address of a ``proxy`` in place of
RabbitMQ's or Redis'; everything else is signals and restarts.

    proxy      a link that can be held in one direction, slowed down or broken
    harness    services, workers behind links, and observations from outside
    workload   the jobs of a soak: what each requests, and how it may end
    producer   a producer process that writes a ledger and can be killed at any moment
    ledger     the file that a producer writes
    history    everything that is known of a run afterwards
    collect    collects the history from ledgers, Redis and RabbitMQ
    checker    finds violations in a history
    waste      the wasted tokens
    faults     the faults of processes and links, drawn from a seed
    service_faults, cluster_faults
               those of one RabbitMQ and one Redis, and those of three of each
    cluster    three of each
    limits     full disks, wrong clocks, no more files, logs that nobody reads
    appended   every result that a Redis server has acknowledged, even if it was forgotten
    soak       jobs and faults at the same time, then the check
    cli        ``inferfleet-chaos``
"""

from __future__ import annotations
