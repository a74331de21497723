"""What the tests of a gateway's batches share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inferfleet.gateway.batches.storage import StorageError
from inferfleet.producer.batch.line_ids import new_batch_id
from inferfleet.schemas import Endpoint
from inferfleet.schemas.batch import (
    BatchOrder,
)
from inferfleet.schemas.job import DEFAULT_TENANT

KEY_ID = "0123456789ab"


def order(**changes: Any) -> BatchOrder:
    given: dict[str, Any] = {
        "id": "batch_" + new_batch_id().replace("-", ""),
        "tenant": DEFAULT_TENANT,
        "input_file_id": f"file-{'0' * 32}",
        "endpoint": Endpoint.CHAT,
        "completion_window": "24h",
        "created_ms": 0,
        "deadline_ms": 1 << 45,
        "options": {},
        "output_ttl_s": 3600,
    }
    return BatchOrder(**{**given, **changes})


class StuckStorage:
    """Cannot remove anything, unless its name has ``good`` in it."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    async def apart(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    def remove(self, name: str) -> None:
        if "good" not in name:
            raise StorageError("stuck")
        self.removed.append(name)
