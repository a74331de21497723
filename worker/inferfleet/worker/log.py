"""Log lines: one JSON object each for machines, or text for a person at a terminal."""

from __future__ import annotations

import logging

from pythonjsonlogger.json import JsonFormatter

from inferfleet.schemas.settings import LogFormat, WorkerSettings

QUIET = ("aio_pika", "aiormq", "aiormq.connection", "asyncio")
"""Libraries whose INFO lines say nothing that ours don't."""


def configure_logging(settings: WorkerSettings) -> None:
    """Send all logging of the process to stderr. Prompts and answers are in no line of ours."""
    handler = logging.StreamHandler()
    match settings.log_format:
        case LogFormat.JSON:
            handler.setFormatter(
                JsonFormatter(
                    ("asctime", "levelname", "name", "message"),
                    rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                    static_fields={"worker_id": settings.worker_id},
                )
            )
        case LogFormat.CONSOLE:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
