"""The page on request bodies says what the suite beside vLLM's own server knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.engine.deliberate import DIFFERENT, ONLY_THE_WORKER_KNOWS
from tests.engine.shapes.bodies import VALUES, all_shapes

from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.openai_requests import (
    MOST_CHOICES,
    MOST_LOGPROBS,
    MOST_PROMPTS,
    MOST_STOP_STRINGS,
)
from inferfleet.schemas.scoring_requests import SPELLINGS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "requests.md").read_text()


def rows(heading: str) -> dict[str, str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    pairs = re.findall(r"^\| (.+?) \| (.+?) \|$", section, flags=re.MULTILINE)
    return {first: second for first, second in pairs if set(first) != {"-"}}


def test_each_difference_is_told_with_its_reason() -> None:
    told = rows("Differences from vLLM").keys() - {"difference"}
    # The last one shows in no response: ids and times are left out of the comparison.
    unseen = {"`priority`, `request_id` and `cache_salt` are checked, and then replaced"}
    assert told - unseen == {kind.what for kind in DIFFERENT}


def test_all_that_only_a_worker_knows_is_told() -> None:
    told = rows("What only a worker can refuse").keys() - {"reason"}
    assert told == {kind.what for kind in ONLY_THE_WORKER_KNOWS}


@pytest.mark.parametrize("kind", [*DIFFERENT, *ONLY_THE_WORKER_KNOWS], ids=lambda kind: kind.what)
def test_each_exception_has_a_request_that_shows_it(kind: Any) -> None:
    for pattern in kind.shapes:
        assert any(kind.covers(shape) for shape in all_shapes()), pattern


def test_each_endpoint_is_told_with_what_it_needs() -> None:
    section = PAGE.partition("## Endpoints\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(\S+)` \| (.+?) \| (.*?) ?\|$", section, flags=re.MULTILINE)
    assert told == [
        (endpoint, spec.model, ", ".join(f"`{path}`" for path in spec.other_paths))
        for endpoint, spec in ENDPOINTS.items()
    ]
    for first, second in SPELLINGS:
        assert f"`{first}` and\n`{second}`" in section or f"`{first}` and `{second}`" in section


def test_the_page_counts_as_the_suite_does() -> None:
    number = len(all_shapes())
    assert f"about {round(number, -2)} bodies" in PAGE
    assert f"puts {len(VALUES)} values" in PAGE


def test_the_limits_are_those_of_the_check() -> None:
    limits = " ".join(rows("Limits that vLLM can change"))
    for limit in (MOST_STOP_STRINGS, MOST_LOGPROBS, MOST_CHOICES, MOST_PROMPTS):
        assert f"{limit:,} " in limits


def test_no_two_shapes_have_the_same_name() -> None:
    names = [shape.name for shape in all_shapes()]
    assert len(names) == len(set(names))
