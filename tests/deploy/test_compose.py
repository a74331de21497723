"""The fleet for a laptop: compose.yaml agrees with the code, and compose has nothing to say against it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from tests.deploy.conftest import ROOT

from inferfleet.exporter.server import LIVE_PATH
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.app import READY_PATH as GATEWAY_READY_PATH
from inferfleet.gateway.server import LAST_WORDS_S
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.wire.health_port import METRICS_PATH, READY_PATH
from inferfleet.worker.worker import SETTLE_GRACE_S

COMPOSE = ROOT / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def published(service: dict[str, Any]) -> dict[str, str]:
    """Ports on this machine, by those in the container."""
    mapped = (port.rsplit(":", 2) for port in service.get("ports", []))
    return {inside: f"{address}:{outside}" for address, outside, inside in mapped}


def test_compose_reads_it_without_a_word() -> None:
    if not shutil.which("docker"):
        pytest.skip("no docker")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin")
    done = subprocess.run(
        ["docker", "compose", "--file", str(COMPOSE), "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_two_workers_reach_both_services(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = services["worker"]
    assert worker["deploy"]["replicas"] == 2
    for name, value in worker["environment"].items():
        assert name.removeprefix("INFERFLEET_").lower() in WorkerSettings.model_fields
        monkeypatch.setenv(name, value)
    settings = WorkerSettings()
    assert worker["command"] == ["--engine", "simulated"]
    for url, port in ((settings.amqp_url, 5672), (settings.redis_url, 6379)):
        assert urlsplit(url).port == port
        assert urlsplit(url).hostname in services
    rabbitmq = services["rabbitmq"]["environment"]
    amqp = urlsplit(settings.amqp_url)
    assert (amqp.username, amqp.password) == (
        rabbitmq["RABBITMQ_DEFAULT_USER"],
        rabbitmq["RABBITMQ_DEFAULT_PASS"],
    )


def test_the_urls_it_tells_to_export_are_the_published_ones(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = [line for line in COMPOSE.read_text().splitlines() if line.startswith("#   export ")]
    for line in exports:
        name, _, value = shlex.split(line)[2].partition("=")
        monkeypatch.setenv(name, value)
    settings = ProducerSettings()
    for service, url in (("rabbitmq", settings.amqp_url), ("redis", settings.redis_url)):
        parts = urlsplit(url)
        assert f"{parts.hostname}:{parts.port}" in published(services[service]).values()
    assert (
        urlsplit(settings.amqp_url).password == services["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_PASS"]
    )


def test_every_service_is_pinned_and_says_whether_it_is_well(services: dict[str, Any]) -> None:
    for name, service in services.items():
        image, _, tag = service["image"].partition(":")
        assert tag not in {"", "latest"}
        assert not image.startswith("inferfleet-") or tag == version("inferfleet")
        assert service["healthcheck"]["test"][0] == "CMD", name


def test_nothing_is_open_to_the_network(services: dict[str, Any]) -> None:
    addresses = [address for service in services.values() for address in published(service).values()]
    assert addresses
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_a_worker_is_given_time_to_drain(services: dict[str, Any]) -> None:
    grace_s = float(services["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > WorkerSettings().drain_timeout_s + SETTLE_GRACE_S


def test_redis_keeps_what_it_has_acknowledged(services: dict[str, Any]) -> None:
    assert services["redis"]["command"][1:3] == ["--appendonly", "yes"]
    assert "noeviction" in services["redis"]["command"]


def test_probes_and_prometheus_ask_where_a_worker_answers(services: dict[str, Any]) -> None:
    port = WorkerSettings().http_port
    assert f"127.0.0.1:{port}{READY_PATH}" in services["worker"]["healthcheck"]["test"][-1]
    mounted = services["prometheus"]["volumes"][0].split(":")[0]
    prometheus = yaml.safe_load((ROOT / mounted).read_text())
    workers, exporter, gateway = prometheus["scrape_configs"]
    assert "metrics_path" not in workers
    assert METRICS_PATH == "/metrics", "Prometheus' own default"
    (found,) = workers["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["worker"], port)
    assert exporter["static_configs"] == [{"targets": [f"exporter:{ExporterSettings().http_port}"]}]
    metrics_port = services["gateway"]["environment"]["INFERFLEET_METRICS_PORT"]
    assert gateway["static_configs"] == [{"targets": [f"gateway:{metrics_port}"]}]


def test_the_gateway_is_at_its_port_and_has_time_to_drain(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = services["gateway"]
    for name, value in gateway["environment"].items():
        assert name.removeprefix("INFERFLEET_").lower() in GatewaySettings.model_fields
        monkeypatch.setenv(name, value)
    settings = GatewaySettings()
    assert settings.metrics_host == settings.http_host
    assert published(gateway) == {str(settings.http_port): f"127.0.0.1:{settings.http_port}"}
    assert f"127.0.0.1:{settings.http_port}{GATEWAY_READY_PATH}" in gateway["healthcheck"]["test"][-1]
    assert float(gateway["stop_grace_period"].removesuffix("s")) > settings.drain_timeout_s + LAST_WORDS_S


def test_the_exporter_reads_rabbitmqs_http_api(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = services["exporter"]
    assert exporter["image"] == services["worker"]["image"]
    assert exporter["entrypoint"] == ["inferfleet", "exporter"]
    common = services["worker"]["environment"]
    assert exporter["environment"].items() >= common.items()
    for name, value in exporter["environment"].items():
        assert name.removeprefix("INFERFLEET_").lower() in ExporterSettings.model_fields
        monkeypatch.setenv(name, value)
    settings = ExporterSettings()
    assert settings.management_url is not None
    management, amqp = urlsplit(settings.management_url), urlsplit(settings.amqp_url)
    assert (management.hostname, management.username, management.password, management.port) == (
        amqp.hostname,
        amqp.username,
        amqp.password,
        15672,
    )
    assert f":{settings.http_port}{LIVE_PATH}" in exporter["healthcheck"]["test"][-1]
