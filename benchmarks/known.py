"""The contenders that are known here."""

from __future__ import annotations

from contender import Contender

BASIC = frozenset({"submit", "drain", "round trip", "50 ms"})

OURS = Contender(
    name="inferfleet",
    script="inferfleet_fleet.py",
    cases=BASIC | {"stream"},
    note="fence, journal, metrics, log lines and x-max-priority on; no-op engine, one chunk of tokens",
)

RAW = (
    Contender(
        name="aio-pika naive",
        script="aio_pika_raw.py",
        worker_command=("aio_pika_raw.py", "naive"),
        note="hand-written: awaits each SET and each ack by itself",
    ),
    Contender(
        name="aio-pika batched",
        script="aio_pika_raw.py",
        worker_command=("aio_pika_raw.py", "batched"),
        note="hand-written: SETs and acks in natural batches; no record, fence, journal or reconnect",
    ),
)
