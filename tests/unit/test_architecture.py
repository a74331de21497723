"""docs/architecture.md names what the code names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

from inferfleet.schemas import JobState, names
from inferfleet.worker.outcomes import Outcome

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LAYERS: list[str] = next(
    contract["layers"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """The code in the first column of the tables of a section."""
    return [
        code
        for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        for code in re.findall(r"`(.*?)`", cell)
    ]


def test_every_package_is_listed() -> None:
    listed = {name for name in first_cells(section("The parts")) if name.startswith("inferfleet.")}

    assert listed == {package for layer in LAYERS for package in layer.split(" | ")}


def test_every_module_of_the_worker_that_is_listed_exists() -> None:
    listed = [name for name in first_cells(section("The parts")) if not name.startswith("inferfleet.")]

    worker = ROOT / "worker" / "inferfleet" / "worker"
    assert listed
    assert [name for name in listed if not (worker / name).exists()] == []


def test_the_order_of_imports_is_that_of_the_contract() -> None:
    order = re.search(r"Imports go one way: (.*?)\. ", section("The parts"))

    assert order
    layers = [re.findall(r"`(\w+)`", layer) for layer in order[1].split(" > ")]
    assert layers == [re.findall(r"inferfleet\.(\w+)", layer) for layer in LAYERS]


def test_the_diagram_has_every_state_and_leaves_no_terminal_one() -> None:
    arrows = re.findall(r"^ +(\S+) --> (\S+)", section("States"), re.MULTILINE)

    assert {state for arrow in arrows for state in arrow} - {"[*]"} == {state.value for state in JobState}
    assert {source for source, target in arrows if target == "[*]"} == {
        state.value for state in JobState if state.terminal
    }
    assert all(target == "[*]" for source, target in arrows if source != "[*]" and JobState(source).terminal)


def test_the_names_in_rabbitmq_are_those_of_the_contract() -> None:
    assert first_cells(section("RabbitMQ")) == [
        names.JOBS_EXCHANGE,
        names.job_queue("<pool>"),
        names.warm_queue("<pool>", "<worker>"),
        names.DEAD_EXCHANGE,
        names.dead_queue("<pool>"),
        names.dead_lock("<pool>"),
        names.CONTROL_EXCHANGE,
        names.control_queue("<worker>"),
        names.delay_queue("<type>", "<seconds>"),
        names.run_queue("<queue>"),
    ]


def test_the_keys_in_redis_are_those_of_the_contract() -> None:
    assert first_cells(section("Redis")) == [
        names.job_key("id"),
        names.journal_key("id"),
        names.request_key("id"),
        names.result_key("id"),
        names.response_key("id"),
        names.reply_key("client"),
        names.idempotency_key("tenant", "key"),
        names.guarantee_key("key"),
        names.places_key("key"),
        f"{names.LIMITS_PREFIX}:{{…}}",
        names.session_key("sid"),
        names.POOLS_KEY,
        names.pool_key("pool"),
        names.shares_key("pool"),
        names.preferred_key("pool", "<tenant>"),
        names.warm_prompt_key("pool", "<beginning>"),
        names.waiting_turns_key("pool"),
        names.open_key("pool", 0).replace(":0", ":<priority>"),
        names.held_key("pool"),
        names.swap_key("pool"),
        names.sweep_key("pool"),
        names.worker_key("<id>"),
        names.WORKERS_KEY,
        names.WEBHOOK_WATCHED_KEY,
        names.webhook_endpoints_key("<tenant>"),
        names.webhook_endpoint_key("<id>"),
        names.WEBHOOK_QUEUE_KEY,
        names.batch_key("<id>"),
        names.BATCHES_KEY,
        names.tenant_batches_key("<tenant>"),
        names.tenant_open_batches_key("<tenant>"),
        names.file_key("<id>"),
        names.FILES_KEY,
        names.tenant_files_key("<tenant>"),
        names.FLEET_HISTORY_KEY,
        names.FLEET_RECORDER_KEY,
        names.run_key("id"),
        names.run_steps_key("id"),
        names.run_inbox_key("id"),
        names.AGENT_QUEUES_KEY,
        names.open_runs_key("queue"),
        names.index_key("tenant", "name"),
        names.index_deleted_key(names.index_key("tenant", "name")),
        names.index_vectors_key(names.index_key("tenant", "name"), "<generation>"),
        names.index_documents_key(names.index_key("tenant", "name"), "<generation>"),
        names.index_document_key(names.index_key("tenant", "name"), "<generation>", "<digest>"),
        names.tenant_indexes_key("<tenant>"),
    ]


def test_the_glossary_has_each_state_and_each_outcome() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^- \*\*(.+?)\*\*: ((?:.|\n  )+)", glossary, re.MULTILINE))

    assert set(re.findall(r"`(\w+)`", entries["State"])) == {state.value for state in JobState}
    outcomes = entries["Outcome"]
    for words, name in {"hand over": "HandOver", "give up": "GiveUp", "pass on": "PassOn"}.items():
        outcomes = outcomes.replace(words, name)
    named = set(re.findall(r"\w+", outcomes))
    assert {outcome.__name__ for outcome in get_args(Outcome)} <= {
        word[0].upper() + word[1:] for word in named
    }
