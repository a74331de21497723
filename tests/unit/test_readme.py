"""README and the reference pages say what the code says, and what they tell people to type exists."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from inferfleet.agents import Agent, Prices, RunLimits, tool
from inferfleet.agents.metrics import RunnerMetrics
from inferfleet.agents.settings import RunnerSettings
from inferfleet.cli.failing import exit_code
from inferfleet.cli.root import COMMANDS
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.gateway.metrics import REFUSALS, GatewayMetrics
from inferfleet.gateway.metrics_port import METRICS_PATH
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.producer.retrieval.counts import SearchCounts
from inferfleet.schemas.errors import (
    BatchOutputError,
    ConfigurationError,
    InvalidJobError,
    JobNotFoundError,
    ServiceUnreachableError,
    UnknownPoolError,
)
from inferfleet.schemas.heartbeat import Heartbeat, WorkerPhase
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.settings import ProducerSettings, ServiceSettings, WorkerSettings
from inferfleet.wire import health_port
from inferfleet.wire.outage import Outage
from inferfleet.worker.cli import app as worker_command
from inferfleet.worker.gpus import THROTTLING, GpuReading
from inferfleet.worker.metrics import WorkerMetrics

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
GATEWAY = (ROOT / "docs/how-to/use-the-gateway.md").read_text(encoding="utf-8")
WORKERS = (ROOT / "docs/how-to/run-workers.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

MADE_UP_AT_START = {"client_id": "a new one", "worker_id": "host and process"}
"""Defaults that are no constants, as the table words them."""


def tables(page: str, heading: str) -> list[list[list[str]]]:
    """The tables of a page with this heading row: the cells of their rows, without the code marks."""
    found = re.findall(rf"^{re.escape(heading)}\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert found, f"there is no table {heading}"
    return [
        [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in table.splitlines()]
        for table in found
    ]


def default(settings: type[BaseSettings], name: str) -> str:
    """A setting's default as the table shows it."""
    if name in MADE_UP_AT_START:
        return MADE_UP_AT_START[name]
    value = settings.model_fields[name].get_default(call_default_factory=True, validated_data={})
    if value is None or value == ():
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    ("position", "settings"),
    [
        (0, ServiceSettings),
        (1, ProducerSettings),
        (2, WorkerSettings),
        (3, GatewaySettings),
        (4, RunnerSettings),
        (5, ExporterSettings),
    ],
)
def test_each_setting_is_in_its_table_with_its_default(position: int, settings: type[BaseSettings]) -> None:
    shared = {name for base in settings.__bases__ for name in getattr(base, "model_fields", {})}
    own = [name for name in settings.model_fields if name not in shared]

    documented = [row[:2] for row in tables(SETTINGS, "| variable | default | meaning |")[position]]

    assert documented == [[f"INFERFLEET_{name.upper()}", default(settings, name)] for name in own]


def test_a_url_with_a_query_is_quoted_for_the_shell() -> None:
    """Other shells than sh take its ``?`` for a pattern of file names."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert any("?wait=30" in block for block in blocks)
    assert re.findall(r"^.*\s(?:https?://|[\w.]+:\d+/)[^\s'\"]*\?.*$", "\n".join(blocks), re.MULTILINE) == []


def test_each_metric_is_in_the_table_with_its_type_and_labels() -> None:
    tables_of = tables(METRICS, "| metric | type | labels | meaning |")
    expositions = (metrics_of_a_worker(), metrics_of_a_gateway(), metrics_of_a_runner())

    for table, exposition in zip(tables_of, expositions, strict=True):
        named = {row[0]: (row[1], sorted(re.findall(r"\w+", row[2]))) for row in table}
        assert named == described(exposition)


def described(exposition: bytes) -> dict[str, tuple[str, list[str]]]:
    """Every metric, its type and labels, as a scrape shows them once each has a value."""
    text = exposition.decode()
    kinds: dict[str, str] = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    # Prometheus adds the time of creation to each; nobody asks for those.
    names = [name for name in kinds if not name.endswith("_created")]
    return {name: (kinds[name], labels(text, name)) for name in names}


def metrics_of_a_gateway() -> bytes:
    metrics = GatewayMetrics(CollectorRegistry())
    metrics.watch({"redis": Outage()}, SearchCounts())
    metrics.request_ended(method="GET", route="/", status=200, tenant="", started_s=1, ended_s=1)
    metrics.client_gone(method="GET", route="/")
    return metrics.exposition()


def metrics_of_a_runner() -> bytes:
    metrics = RunnerMetrics(queue="default")
    limits = RunLimits(prices=Prices(input=Decimal(1), output=Decimal(1)))
    metrics.know([Agent(name="clerk", tools=[tool(pay)], limits=limits)])
    return generate_latest(metrics.registry)


def pay() -> None:
    """Pay."""


def metrics_of_a_worker() -> bytes:
    metrics = WorkerMetrics(pool="default")
    now = datetime.now(UTC)
    metrics.observe(
        Heartbeat(
            worker_id="a",
            pool="default",
            phase=WorkerPhase.READY,
            engine="simulated",
            model="m",
            version="0",
            started_at=now,
            seen_at=now,
        ),
        ready=True,
        gpus=[
            GpuReading(
                uuid="GPU-1",
                memory_used_bytes=1,
                memory_total_bytes=2,
                utilization=0.5,
                power_watts=300,
                temperature_celsius=60,
                throttled=dict.fromkeys(THROTTLING, False),
            )
        ],
    )
    return metrics.exposition()


def labels(exposition: str, metric: str) -> list[str]:
    found = re.search(rf"^{metric}(?:_count)?(?:{{(.*?)}})? ", exposition, re.MULTILINE)
    assert found, f"{metric} has no value"
    return sorted(re.findall(r'(\w+)="', found[1] or ""))


def test_each_health_endpoint_is_in_the_table() -> None:
    (table,) = tables(METRICS, "| path | answers |")

    assert [row[0] for row in table] == [
        health_port.LIVE_PATH,
        health_port.READY_PATH,
        health_port.METRICS_PATH,
    ]
    assert METRICS_PATH == health_port.METRICS_PATH


def test_the_guide_explains_every_refusal_that_is_counted() -> None:
    (table,) = tables(GATEWAY, "| status | code | meaning |")

    assert {code for row in table for code in row[1].split(", ")} == REFUSALS


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobNotFoundError(new_job_id()), 1),
        (ConfigurationError("-"), 2),
        (InvalidJobError("-"), 2),
        (UnknownPoolError("-"), 2),
        (ServiceUnreachableError("-"), 3),
        (BatchOutputError("-"), 4),
    ],
)
def test_the_exit_codes_are_those_of_the_table(error: Exception, code: int) -> None:
    (table,) = tables(README, "| exit code | meaning |")

    assert exit_code(error) == code
    assert str(code) in [row[0] for row in table]


def test_each_make_target_that_is_named_exists() -> None:
    named = re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)

    targets = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert named
    assert set(named) <= targets


def test_each_extra_that_is_named_exists() -> None:
    named = set(re.findall(r"^pip install '\.\[(\w+)\]'", README, re.MULTILINE))

    assert named
    assert named <= PROJECT["optional-dependencies"].keys()


def test_each_image_that_is_named_can_be_built() -> None:
    named = set(re.findall(r"^docker build --target (\w+)", WORKERS, re.MULTILINE))
    targets = set(re.findall(r"^FROM .* AS ([a-z-]+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))

    assert named == {"producer", "worker"}
    assert named <= targets


@pytest.mark.parametrize("page", [README, WORKERS])
def test_each_option_of_the_worker_that_is_named_exists(page: str) -> None:
    (example,) = re.findall(r"^inferfleet worker ((?:.*\\\n)*.*)$", page, re.MULTILINE)
    said = CliRunner().invoke(worker_command, ["--help"]).output

    assert set(re.findall(r"--[a-z-]+", example)) <= set(re.findall(r"--[a-z-]+", said))


def test_the_site_has_every_page_of_the_documentation() -> None:
    """A page that is missing here fails `make docs`: add it to `nav` in mkdocs.yml."""
    listed = set(
        re.findall(r"(\S+\.md)\]?$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}

    # scripts/docs_hooks.py adds the records.
    assert {page.lstrip("[") for page in listed} == {p for p in pages if not p.startswith("decisions/0")}


def test_each_file_that_is_linked_exists() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)

    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs/images").glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_fetches_nothing(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")

    pages = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))]
    assert any(f"images/{picture.name}" in page for page in pages)
    assert re.findall(r"url\([\"']?http|href=[\"']http|src=[\"']http", text) == []


def test_the_changelog_names_every_command() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    listed = re.search(r"^- The command `inferfleet`: (.*?)\.$", changelog, re.MULTILINE | re.DOTALL)
    assert listed
    # Those of the first release, and those that came later.
    named = {*re.findall(r"`(\S+)`", listed[1]), *re.findall(r"`inferfleet (\w+)", changelog)}
    assert COMMANDS.keys() <= named
