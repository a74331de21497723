"""The contenders that are known here."""

from __future__ import annotations

from contender import ARQ_PYTHON, PEERS_PYTHON, Contender

CELERY = (
    *("-m", "celery", "--app", "celery_app", "worker", "--loglevel", "WARNING"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)

BASIC = frozenset({"submit", "drain", "round trip", "50 ms"})

OURS = Contender(
    name="inferfleet",
    script="inferfleet_fleet.py",
    cases=BASIC | {"stream"},
    note="fence, journal, metrics, x-max-priority; no-op engine, one chunk of tokens; log level WARNING",
)

OURS_LOGGED = Contender(
    name="inferfleet logged",
    script="inferfleet_fleet.py",
    variant="logged",
    cases=frozenset({"drain"}),
    note="the same with its default log: a JSON line for each job",
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
    Contender(
        name="aio-pika batched, priorities",
        script="aio_pika_raw.py",
        worker_command=("aio_pika_raw.py", "batched"),
        variant="priorities",
        cases=frozenset({"drain"}),
        note="on a queue with x-max-priority, as ours is",
    ),
)


PEERS = (
    Contender(
        name="taskiq",
        script="taskiq_app.py",
        python=PEERS_PYTHON,
        worker_command=(
            *("-m", "taskiq", "worker", "taskiq_app:broker", "--workers", "1"),
            *("--max-async-tasks", "{concurrency}", "--ack-type", "when_saved", "--log-level", "WARNING"),
        ),
        note="taskiq-aio-pika; waits for results by polling every ms",
    ),
    Contender(
        name="FastStream",
        script="faststream_app.py",
        python=PEERS_PYTHON,
        note="as in its tutorial, with its access log; the handler itself SETs the result",
    ),
    Contender(
        name="FastStream tuned",
        script="faststream_app.py",
        python=PEERS_PYTHON,
        variant="tuned",
        note="without typed arguments and access log",
    ),
    Contender(
        name="Celery",
        script="celery_app.py",
        python=PEERS_PYTHON,
        worker_command=(*CELERY, "--pool", "prefork", "--concurrency", "{concurrency}"),
        busy_command=(*CELERY, "--pool", "threads", "--concurrency", "{concurrency}"),
        no_op_concurrency=1,
        note="prefork with one child, late acks; 256 threads for the 50 ms job",
    ),
    Contender(
        name="dramatiq",
        script="dramatiq_app.py",
        python=PEERS_PYTHON,
        worker_command=("-m", "dramatiq", "dramatiq_app", "--processes", "1", "--threads", "{concurrency}"),
        no_op_concurrency=8,
        note="8 threads, 256 for the 50 ms job",
    ),
    Contender(
        name="arq",
        script="arq_app.py",
        python=ARQ_PYTHON,
        note="Redis alone, so no broker confirms anything; both sides poll every ms",
    ),
)
