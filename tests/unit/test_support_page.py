"""docs/reference/support.md says what the tests run on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.matrix import BROKERS

from inferfleet.local.services.containers import REDIS_IMAGE
from inferfleet.schemas.settings import QueueType

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/support.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MARK = "pytest.mark.matrix"


def rows(heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose first column has this heading."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in table.splitlines()]


def test_the_table_of_brokers_is_the_matrix() -> None:
    assert rows("RabbitMQ") == [
        [
            cell.version,
            cell.queue_type,
            "none" if cell.priorities == 1 else str(cell.priorities),
            cell.returns,
            "yes" if cell.queue_type is QueueType.QUORUM else "no",
        ]
        for cell in BROKERS
    ]


def test_each_suite_that_the_page_names_is_in_the_matrix() -> None:
    marked = {path.name for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text("utf-8")}
    assert marked >= {
        "test_confirms.py",
        "test_pool_queues.py",
        "test_submitting.py",
        "test_retrying.py",
        "test_sessions.py",
        "test_worker_killed.py",
        "test_producer_killed.py",
        "test_services_lost.py",
    }


def test_the_matrix_is_a_step_of_ci() -> None:
    assert "test-matrix" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_other_versions_are_those_of_the_project() -> None:
    assert [version.split(".")[0] for version, _ in rows("Redis")] == ["7", REDIS_IMAGE.partition(":")[2]]
    documented = {
        version for what, versions, _ in rows("what") if what == "Python" for version in versions.split(", ")
    }
    classified = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert documented == classified
    (requirement,) = [each for each in PROJECT["optional-dependencies"]["vllm"] if each.startswith("vllm")]
    assert requirement == "vllm>=0.32,<0.34"
    assert "accepts vLLM 0.32 and 0.33" in PAGE
