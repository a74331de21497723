"""Log lines: one JSON object each for machines, or text for a person at a terminal.

No line has a prompt or an answer in it, unless ``INFERFLEET_LOG_PROMPTS`` asks for that.
"""

from __future__ import annotations

import logging
import traceback
from types import TracebackType
from typing import Final

from pythonjsonlogger.orjson import OrjsonFormatter

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import LogFormat, WorkerSettings

QUIET: Final = ("aio_pika", "aiormq", "aiormq.connection", "asyncio")
"""Libraries whose INFO lines say nothing that ours don't."""

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime"}

ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure_logging(settings: WorkerSettings) -> None:
    """Send all logging of the process to stderr.

    Raises:
        ConfigurationError: There is no such level.

    """
    level = settings.log_level.upper()
    levels = logging.getLevelNamesMapping()
    if level not in levels:
        raise ConfigurationError(f"INFERFLEET_LOG_LEVEL: {level!r} is not one of {', '.join(levels)}")
    handler = logging.StreamHandler()
    match settings.log_format:
        case LogFormat.JSON:
            handler.setFormatter(
                _JsonLines(
                    ("asctime", "levelname", "name", "message"),
                    rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                    static_fields={"worker_id": settings.worker_id},
                )
            )
        case LogFormat.CONSOLE:
            handler.setFormatter(_Text("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def without_words(error: BaseException | None) -> str:
    """Format an error and its causes: of which type and where, but not what they say.

    What a library says of a request that it stumbled over may quote the prompt.
    """
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        parts.append("".join([*traceback.format_tb(error.__traceback__), type(error).__qualname__]))
        error = error.__cause__ or error.__context__
    return "\ncaused by\n".join(parts)


class _JsonLines(OrjsonFormatter):
    def formatException(self, ei: ErrorInfo) -> str:  # noqa: N802 - the name is logging's
        return without_words(ei[1])


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        fields = "".join(f" {name}={value}" for name, value in extra.items() if value is not None)
        return super().formatMessage(record) + fields

    def formatException(self, ei: ErrorInfo) -> str:  # noqa: N802 - the name is logging's
        return without_words(ei[1])
