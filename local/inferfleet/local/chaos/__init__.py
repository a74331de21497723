"""The crash-window suite: real processes, real faults from outside, and a checker of the whole history.

No product code knows of this package. A worker or producer gets the address of a ``proxy`` in place of
RabbitMQ's or Redis'; everything else is signals and restarts.

    proxy      a link that can be held in one direction, slowed down or broken
    harness    services, workers behind links, and a look at all of it from outside
    workload   the jobs of a soak: what each asks for, and how it may end
    producer   a producer process that writes a ledger and can be killed at any moment
    ledger     the file it writes
    history    everything that is known of a run, afterwards
    collect    gathers the history from ledgers, Redis and RabbitMQ
    checker    finds what must not be there
    waste      how many tokens were generated for nothing, at most
    faults     what can go wrong, drawn from a seed
    soak       jobs and faults at the same time, then the check
    cli        ``inferfleet-chaos``
"""

from __future__ import annotations
