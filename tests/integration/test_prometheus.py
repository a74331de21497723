"""A real Prometheus scrapes a small real fleet, and every query of dashboards and alerts finds data there."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from tests.integration.conftest import (
    PATIENCE_S,
    StartGateway,
    StartWorkerProcess,
    chat,
    eventually,
    slow_chat,
    until_tokens,
)

from inferfleet.exporter.server import serving
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.local.services import Services
from inferfleet.local.services.free_port import free_port
from inferfleet.producer import Fleet
from inferfleet.producer.rollouts import Rollouts
from inferfleet.schemas import Job

FOLDER = Path(__file__).parents[2] / "deploy/observability"

VALUES = {"$__rate_interval": "5m", "$pool": ".+", "$instance": ".+", "$gpu_hour": "2"}
"""What Grafana would put in."""

WITH_A_GPU = (
    "import sys; from tests.fake_nvml import FakeNvml; sys.modules['pynvml'] = FakeNvml({'GPU-1': []})"
)


@pytest.fixture
def services(managed: Services) -> Services:
    """Those with RabbitMQ's HTTP API, from which the exporter has its counters."""
    return managed


def queries() -> dict[str, str]:
    """All queries of the dashboards and alerts by their places; those of alerts without the comparison."""
    found: dict[str, str] = {}
    for path in sorted((FOLDER / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"]
                for name, value in VALUES.items():
                    query = query.replace(name, value)
                found[f"{path.stem}: {panel['title']}: {target['legendFormat']}"] = query
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                found[rule["alert"]] = re.sub(r" (==|>) [\d.]+| unless .+", "", rule["expr"])
            else:
                found[rule["record"]] = rule["record"]
    return found


@asynccontextmanager
async def prometheus(folder: Path, targets: dict[str, list[str]]) -> AsyncIterator[str]:
    """Run Prometheus with our rules, and yield its URL."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FOLDER / "rules.yml")],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": its}]} for job, its in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


class Asked:
    """Asks Prometheus."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    async def ready(self) -> bool:
        try:
            async with self._http.get(f"{self._url}/-/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectorError:
            return False

    async def get(self, path: str, **parameters: str) -> Any:
        async with self._http.get(f"{self._url}/api/v1/{path}", params=parameters) as answer:
            body = await answer.json()
        assert body["status"] == "success", body
        return body["data"]

    async def has_data(self, query: str) -> bool:
        values = [float(it["value"][1]) for it in (await self.get("query", query=query))["result"]]
        return any(not math.isnan(value) for value in values)

    async def until_data(self, queries: dict[str, str]) -> None:
        """Wait until each of these queries has found something."""
        missing = dict(queries)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while missing:
                    for place, query in list(missing.items()):
                        if await self.has_data(query):
                            del missing[place]
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"without data: {missing}") from None


async def test_every_query_of_dashboards_and_alerts_finds_data(
    fleet: Fleet,
    services: Services,
    start_worker_process: StartWorkerProcess,
    start_gateway: StartGateway,
    pool: str,
    tmp_path: Path,
) -> None:
    metrics_port = free_port()
    gateway = await start_gateway(metrics_port=metrics_port)
    engine = ("--engine-args", '{"speed": 0}')
    workers = [
        await start_worker_process(*engine, preamble=WITH_A_GPU, retry_base_s="0.05"),
        await start_worker_process(*engine, retry_base_s="0.05"),
    ]
    settings = ExporterSettings(
        amqp_url=services.amqp_url,
        redis_url=services.redis_url,
        management_url=services.management_url,
        http_host="127.0.0.1",
        http_port=0,
        sample_interval_s=0.5,
    )
    async with serving(settings) as port, aiohttp.ClientSession() as http:
        targets = {
            "inferfleet-workers": [
                f"127.0.0.1:{(await worker.logged('serving health'))['port']}" for worker in workers
            ],
            "inferfleet-exporter": [f"127.0.0.1:{port}"],
            "inferfleet-gateway": [f"127.0.0.1:{metrics_port}"],
        }
        async with prometheus(tmp_path, targets) as url:
            asked = Asked(http, url)
            await eventually(asked.ready)
            # A rate needs what was before.
            await asked.until_data(
                {
                    "workers": "sum(inferfleet_worker_ready) == 2",
                    "all": "count(max_over_time(up[5m]) == 1) == 4",
                }
            )
            # The gateway's series of a status begins with the first request.
            for _ in range(2):
                async with http.post(f"{gateway.url}/v1/chat/completions", json=chat()) as answer:
                    assert answer.status == 200
                await asked.until_data({"answered": 'inferfleet_gateway_requests_total{status="200"}'})
            failing = chat("never", simulated={"fail": "engine_error", "after_tokens": 1})
            jobs = [
                *await fleet.submit_many(
                    [chat(f"{number}", max_tokens=9) for number in range(20)], pool=pool
                ),
                await fleet.submit(Job(pool=pool, tenant="acme", max_attempts=2, body=failing)),
                await fleet.submit(slow_chat("cancelled", tokens=10_000, step_s=0.02), pool=pool),
            ]
            await until_tokens(fleet, jobs[-1])
            await fleet.cancel(jobs[-1])
            await fleet.wait_many(jobs, timeout_s=PATIENCE_S)

            await fleet.declare_pool(f"{pool}-v2")
            await Rollouts(fleet).start(
                pool, to=f"{pool}-v2", steps=(5, 100), interval_s=600, allow_no_workers=True
            )

            await asked.until_data(queries())

            rules = (await asked.get("rules"))["groups"]
    assert [rule["name"] for group in rules for rule in group["rules"] if rule.get("lastError")] == []
