"""What a gateway finds out of the input of a batch, and the order in which its lines run."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from inferfleet.gateway.batches import input as inputs
from inferfleet.gateway.batches.input import Input, examine
from inferfleet.producer.batch import source
from inferfleet.schemas import Endpoint


def line(number: int, body: dict[str, Any]) -> str:
    return json.dumps({"custom_id": str(number), "method": "POST", "url": Endpoint.CHAT, "body": body}) + "\n"


def examined(folder: Path, content: str, *, most: int = 1_000_000) -> Input:
    path = folder / "in"
    path.write_text(content)
    return examine(path, endpoint=Endpoint.CHAT, longest=10_000, most=most, folder=folder)


def chat(model: str, system: str, user: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"model": model, "messages": messages}


def test_lines_with_one_beginning_run_one_after_the_other(tmp_path: Path) -> None:
    # Given lines of two models, with three system messages and two long beginnings, all mixed
    shared = ["x" * 600, "x" * 500 + "y" * 100]
    bodies = [
        chat(f"model {number % 2}", f"system {number % 3}", f"{shared[number % 5 % 2]} {number}")
        for number in range(120)
    ]

    found = examined(tmp_path, "".join(line(number, body) for number, body in enumerate(bodies)))

    # Then there are as few changes of model and system message as there can be
    order = [bodies[each.number - 1] for each in found.in_order()]
    assert len(order) == found.lines == 120
    groups = [(body["model"], body["messages"][0]["content"]) for body in order]
    changes = sum(one != other for one, other in pairwise(groups))
    assert changes == len(set(groups)) - 1 == 5


def test_the_order_is_the_same_however_many_lines_are_sorted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "".join(line(number, chat("m", f"s{number % 7}", str(number))) for number in range(100))
    content = "\n" + content.replace("\n", "\n\n", 3)
    whole = [each.number for each in examined(tmp_path, content).in_order()]

    monkeypatch.setattr(inputs, "SORTED_AT_ONCE", 9)
    found = examined(tmp_path, content)

    assert [each.number for each in found.in_order()] == whole
    assert sorted(whole) == sorted(set(whole))
    texts = {each.number: each.text for each in found.in_order()}
    assert [json.loads(texts[number] or b"")["custom_id"] for number in sorted(texts)] == [
        str(number) for number in range(100)
    ]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": 3},
        {"messages": [3]},
        {"messages": [{"role": ["system"]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"model": 2**70, "prompt": [1, 2**70]},
        {"prompt": "\ud800", "model": None},
        {"input": ["a", "b"], "tools": 2**70},
    ],
)
def test_any_body_has_a_place_in_the_order(tmp_path: Path, body: dict[str, Any]) -> None:
    content = line(1, chat("m", "s", "u")) + line(2, body)

    found = examined(tmp_path, content)

    if not found.problems:
        assert sorted(each.number for each in found.in_order()) == [1, 2]


def test_a_long_file_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inputs, source):
        monkeypatch.setattr(module, "SORTED_AT_ONCE", 1000)
    peaks: list[int] = []
    for count in (2_000, 20_000):
        path = tmp_path / "in"
        with path.open("w") as file:
            file.writelines(line(number, chat("m", "s" * 200, str(number))) for number in range(count))
        tracemalloc.start()
        found = examine(path, endpoint=Endpoint.CHAT, longest=10_000, most=count, folder=tmp_path)
        assert sum(1 for _ in found.in_order()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    # Eight bytes for each id, and a buffer for each run that is sorted at once: lines have 300.
    assert peaks[1] - peaks[0] < 18_000 * 60
