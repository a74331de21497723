"""The files of one batch, and the batch in this process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from tests.integration.conftest import (
    PATIENCE_S,
    chat,
    slow_chat,
)

from inferfleet.producer import Fleet
from inferfleet.producer.batch import Batch, BatchPlan, BatchProgress
from inferfleet.producer.job_making import JobOptions
from inferfleet.schemas import Endpoint
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.worker.engines.simulated import expected_text

ENDLESS = slow_chat("endless", tokens=10_000, step_s=0.1)


def request(custom_id: str, body: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    body = chat(custom_id, max_tokens=4) if body is None else body
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
        **changes,
    }


class Files:
    """The files of one batch."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"

    def write(self, *lines: dict[str, Any] | str) -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.source.write_text("".join(f"{text}\n" for text in texts))

    def answers(self) -> dict[str, dict[str, Any]]:
        """The lines of the output, by their ``custom_id``; none is there twice."""
        lines = list(map(json.loads, self.output.read_text().splitlines()))
        assert len({line["custom_id"] for line in lines}) == len({line["id"] for line in lines}) == len(lines)
        return {line["custom_id"]: line for line in lines}

    def texts(self) -> dict[str, str]:
        return {
            custom_id: line["response"]["body"]["choices"][0]["message"]["content"]
            for custom_id, line in self.answers().items()
        }

    def failures(self) -> list[dict[str, Any]]:
        return list(map(json.loads, self.errors.read_text().splitlines()))

    def plan(self, **options: Any) -> BatchPlan:
        return BatchPlan(source=self.source, output=self.output, options=cast("JobOptions", options))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def settings(producer_settings: Any) -> ProducerSettings:
    return producer_settings(state_check_interval_s=0.2)


async def run_batch(
    files: Files, settings: ProducerSettings, *, pool: str, retry_failed: bool = False, **limits: Any
) -> BatchProgress:
    """Run a batch in this process, from the beginning of its input or from where it is."""
    with Batch.opened(files.plan(pool=pool), settings, retry_failed=retry_failed) as batch:
        async with Fleet.connect(batch.client_settings(settings)) as fleet:
            return await asyncio.wait_for(batch.run(fleet, **limits), PATIENCE_S)


def expected(custom_id: str) -> str:
    return expected_text(Endpoint.CHAT, chat(custom_id, max_tokens=4))


async def has_lines(path: Path, count: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= count
