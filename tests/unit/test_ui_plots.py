"""The plots of the web page, and its words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from inferfleet.gateway.ui import words
from inferfleet.gateway.ui.answers import MOST_CHARS, answer_parts, message_parts
from inferfleet.gateway.ui.plots import plots
from inferfleet.schemas.fleet_history import FleetSample

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def sample(minutes_ago: float, unfinished: int) -> FleetSample:
    at = NOW - timedelta(minutes=minutes_ago)
    return FleetSample(at=at, unfinished=unfinished, running=0, tokens_per_s=12.5)


def test_a_plot_has_the_last_hour_and_joins_no_samples_that_are_far_apart() -> None:
    samples = [sample(61, 900), sample(60, 0), sample(59.5, 40), sample(30.5, 20), sample(30, 10)]
    jobs, running, tokens = plots(samples, NOW)
    assert jobs.lines == ("0.0,100.0 8.3,20.0", "491.7,60.0 500.0,80.0")
    assert jobs.areas[0] == "0.0,100 0.0,100.0 8.3,20.0 8.3,100"
    assert (jobs.last, jobs.top) == (10, 50)
    assert (running.last, running.top) == (0, 1)
    assert (tokens.last, tokens.top) == (12.5, 20)


def test_a_plot_without_samples_has_no_lines() -> None:
    assert [(plot.lines, plot.last) for plot in plots([sample(100, 1)], NOW)] == [((), None)] * 3


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0.25, "250 ms"), (3.21, "3.2 s"), (42.4, "42 s"), (60, "1 min"), (125, "2 min 5 s"),
     (7260, "2 h 1 min"), (90_000, "1 d 1 h"), (86_400, "1 d")],
)  # fmt: skip
def test_a_duration_has_two_units_at_most(seconds: float | None, said: str) -> None:
    assert words.lasting(seconds) == said


def test_numbers_have_separators_and_unknown_ones_are_dashes() -> None:
    assert [words.count(each) for each in (None, 0, 1234567, 0.25, 99.6)] == [
        "–",
        "0",
        "1,234,567",
        "0.2",
        "100",
    ]
    assert [words.size(each) for each in (512, 2048, 5 << 20)] == ["512 bytes", "2.0 KiB", "5.0 MiB"]
    assert [words.percent(each) for each in (0, 2.5, 100.0)] == ["0 %", "2.5 %", "100 %"]


def test_an_answer_is_shown_by_its_choices() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"up":1}'}}
    said = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]}
    one, other = answer_parts({"choices": [{"message": said}, {"text": "plain"}]})
    assert (one.title, one.text, one.reasoning, one.calls) == ("Choice 1", "", "hm", ('look({"up":1})',))
    assert (other.title, other.text) == ("Choice 2", "plain")
    (vectors,) = answer_parts({"object": "list", "data": [{"embedding": [0.5]}]})
    assert '"embedding"' in vectors.text


def test_what_is_too_long_for_a_page_is_cut() -> None:
    (part,) = answer_parts({"choices": [{"text": "x" * (MOST_CHARS + 5)}]})
    assert part.text.endswith("… 5 more characters are left out")


def test_parts_of_a_message_that_are_no_text_are_named() -> None:
    content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    (part,) = message_parts([{"role": "user", "name": "Ada", "content": content}])
    assert (part.title, part.text) == ("user (Ada)", "look\n[image_url]")
