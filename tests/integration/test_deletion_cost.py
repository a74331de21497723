"""A worker tells Kubernetes what it would cost to delete it. Kubernetes here is a small HTTP server."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.integration.conftest import PATIENCE_S, StartWorker, eventually, slow_chat, until_tokens

from inferfleet.producer import Fleet
from inferfleet.schemas import JobState

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"


class ApiServer:
    """Takes patches of pods as the API server does, and shows them."""

    def __init__(self) -> None:
        self.status = 200
        self.patches: list[tuple[str, str, str]] = []
        self._news = asyncio.Condition()

    async def patch(self, request: web.Request) -> web.Response:
        body: Any = await request.json()
        assert request.content_type == "application/merge-patch+json"
        assert body.keys() == {"metadata"}
        assert body["metadata"].keys() == {"annotations"}
        cost = body["metadata"]["annotations"][ANNOTATION]
        async with self._news:
            self.patches.append((request.path, request.headers["Authorization"], cost))
            self._news.notify_all()
        return web.json_response({"kind": "Pod"}, status=self.status)

    async def until(self, condition: Callable[[list[int]], bool]) -> None:
        """Wait until the costs written so far are as wanted."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: condition([int(cost) for _, _, cost in self.patches]))


@asynccontextmanager
async def serving(api: ApiServer, context: ssl.SSLContext | None = None) -> AsyncGenerator[str]:
    app = web.Application()
    app.router.add_patch("/api/v1/namespaces/{namespace}/pods/{pod}", api.patch)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What Kubernetes mounts into a pod."""
    (tmp_path / "token").write_text("first-token\n")
    return tmp_path


def in_pod(url: str, account: Path) -> dict[str, Any]:
    return {
        "pod_name": "worker-abc",
        "pod_namespace": "inferfleet",
        "kubernetes_url": url,
        "service_account_dir": account,
        "deletion_cost_interval_s": 0.05,
    }


async def test_the_cost_rises_with_the_tokens_in_flight_and_falls_to_zero_when_idle(
    fleet: Fleet, pool: str, start_worker: StartWorker, account: Path
) -> None:
    api = ApiServer()
    async with serving(api) as url:
        await start_worker(**in_pod(url, account))
        await api.until(lambda costs: costs == [0])

        job = await fleet.submit(slow_chat(tokens=100, step_s=0.05), pool=pool)
        await until_tokens(fleet, job, 10)
        await api.until(lambda costs: max(costs) > 10)
        await fleet.cancel(job)
        await api.until(lambda costs: costs[-1] == 0)

    costs = [int(cost) for _, _, cost in api.patches]
    rising = costs[1 : costs.index(max(costs)) + 1]
    assert rising == sorted(rising)
    assert {path for path, _, _ in api.patches} == {"/api/v1/namespaces/inferfleet/pods/worker-abc"}


async def test_a_renewed_token_is_used_for_the_next_request(
    fleet: Fleet, pool: str, start_worker: StartWorker, account: Path
) -> None:
    api = ApiServer()
    async with serving(api) as url:
        await start_worker(**in_pod(url, account))
        await api.until(lambda costs: costs == [0])
        (account / "token").write_text("second-token\n")
        await fleet.submit(slow_chat(tokens=50, step_s=0.05), pool=pool)
        await api.until(lambda costs: len(costs) > 1)
    assert [api.patches[0][1], api.patches[1][1]] == ["Bearer first-token", "Bearer second-token"]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_worker_that_may_not_says_so_once_and_works_on(
    status: int,
    fleet: Fleet,
    pool: str,
    start_worker: StartWorker,
    account: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = ApiServer()
    api.status = status
    async with serving(api) as url:
        await start_worker(**in_pod(url, account))
        await api.until(lambda costs: costs == [0])
        job = await fleet.submit(slow_chat(tokens=20, step_s=0.02), pool=pool)
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
    assert result.state is JobState.SUCCEEDED
    assert len(api.patches) == 1
    assert [record.levelname for record in caplog.records if "deletion cost" in record.message] == ["WARNING"]


async def test_a_server_in_trouble_is_asked_again_and_complained_of_once(
    start_worker: StartWorker, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = ApiServer()
    api.status = 503
    async with serving(api) as url:
        await start_worker(**in_pod(url, account))
        await api.until(lambda costs: len(costs) >= 3)
        assert [r.levelname for r in caplog.records if "deletion cost" in r.message] == ["WARNING"]
        api.status = 200
        count = len(api.patches)
        await api.until(lambda costs: len(costs) > count)


@pytest.mark.parametrize("missing", ["pod_name", "pod_namespace", "token"])
async def test_outside_a_pod_nobody_is_asked(
    missing: str, fleet: Fleet, pool: str, start_worker: StartWorker, account: Path
) -> None:
    api = ApiServer()
    async with serving(api) as url:
        settings = in_pod(url, account)
        if missing == "token":
            (account / "token").unlink()
        else:
            settings[missing] = ""
        await start_worker(**settings)
        job = await fleet.submit(slow_chat(tokens=20, step_s=0.02), pool=pool)
        await fleet.wait(job, timeout_s=PATIENCE_S)
    assert api.patches == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate, and is missing")
@pytest.mark.parametrize("trusted", [True, False])
async def test_only_the_clusters_own_api_server_gets_the_token(
    trusted: bool,
    start_worker: StartWorker,
    account: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = await _certificate(account / "ca.crt", account / "server.key")
    if not trusted:
        await _certificate(account / "ca.crt", account / "other.key")

    async def complained() -> bool:
        return "cannot update this worker's deletion cost" in caplog.text

    api = ApiServer()
    async with serving(api, context) as url:
        await start_worker(**in_pod(url, account))
        if trusted:
            await api.until(lambda costs: costs == [0])
        else:
            await eventually(complained)
            assert api.patches == []


async def _certificate(certificate: Path, key: Path) -> ssl.SSLContext:
    await asyncio.to_thread(
        subprocess.run,
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "1", "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(certificate), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
