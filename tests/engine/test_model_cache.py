"""A model in the hub's cache: vLLM loads the pinned revision, and the hub's library sees the same files."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from huggingface_hub import scan_cache_dir  # pyright: ignore[reportMissingImports]
from tests.engine.conftest import ON_CPU
from tests.model_folders import hub_snapshot

from inferfleet.cli.model_check import check
from inferfleet.cli.model_snapshots import find_snapshot, find_snapshots
from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

PATIENCE_S = 300.0
MAIN, PINNED = "a" * 40, "b" * 40


@pytest.fixture
def home(tiny_model: str, tmp_path: Path) -> Path:
    """A cache in which the branch main is not a model, and the commit ``PINNED`` is."""
    files = {file.name: file.read_bytes() for file in Path(tiny_model).iterdir()}
    hub_snapshot(tmp_path, "acme/tiny", MAIN, "main", files={"config.json": b"{}"})
    hub_snapshot(tmp_path, "acme/tiny", PINNED, "v1", files=files)
    return tmp_path


async def test_a_worker_loads_the_pinned_revision_and_its_identity_names_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(home))
    with running_services(ServicesChoice.EMBEDDED) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        settings = WorkerSettings(
            **urls,
            pool=f"p-{uuid4().hex[:8]}",
            engine="vllm",
            model="acme/tiny",
            engine_args=ON_CPU | {"revision": PINNED},
            max_running=2,
            http_host="127.0.0.1",
        )
        async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**urls)) as fleet:
            worker = workers.start(settings)
            await wait_until_ready([worker], timeout_s=PATIENCE_S)
            # Its heartbeat and its log say so a moment later.
            async with asyncio.timeout(PATIENCE_S):
                while not (heartbeat := (await fleet.workers())[0]).model_weights:
                    await asyncio.sleep(0.05)
                while not (ready := [line for line in logged(worker.log) if line["message"] == "ready"]):
                    await asyncio.sleep(0.05)
    assert heartbeat.model_weights == find_snapshot("acme/tiny", "v1", home).weights() == PINNED
    assert [line["identity"]["revision"] for line in ready] == [PINNED]


def logged(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


def test_the_cache_is_read_as_the_hubs_library_reads_it(home: Path) -> None:
    (repository,) = scan_cache_dir(home / "hub").repos
    theirs = {
        (repository.repo_id, it.commit_hash, tuple(sorted(it.refs)), it.size_on_disk)
        for it in repository.revisions
    }
    ours = {(it.model, it.revision, it.refs, it.size_and_last_read()[0]) for it in find_snapshots(home)}
    assert ours == theirs
    assert check(find_snapshot("acme/tiny", PINNED, home)).problems == []
    shutil.rmtree(home / "hub" / "models--acme--tiny" / "blobs")
    assert scan_cache_dir(home / "hub").warnings
    assert check(find_snapshot("acme/tiny", PINNED, home)).problems
