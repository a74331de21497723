"""What a job is made of: a prompt with its options, a body, or another job."""

from __future__ import annotations

from typing import Any

import pytest

from inferfleet.producer.job_making import JobOptions, check_pool, make_job
from inferfleet.schemas import Endpoint, Job
from inferfleet.schemas.errors import InvalidJobError

BODY = {"messages": [{"role": "user", "content": "hello"}]}


def made(work: Any, **options: Any) -> Job:
    said: JobOptions = options  # type: ignore[assignment]
    return make_job(work, said, max_body_bytes=10**6)


def test_options_of_a_prompt_go_into_its_body() -> None:
    job = made("hello", max_tokens=5, temperature=0, system="Be kind.")
    assert job.body == {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "temperature": 0,
    }
    job = made("hello", endpoint="/v1/completions", max_tokens=5)
    assert job.body == {"prompt": "hello", "max_tokens": 5}


@pytest.mark.parametrize("work", [BODY, Job(body=BODY)], ids=["body", "job"])
@pytest.mark.parametrize("option", [{"max_tokens": 5}, {"temperature": 0}, {"system": "Be kind."}])
def test_a_whole_body_has_these_options_itself(work: Any, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(InvalidJobError, match=f"{name}: only for a prompt.*set it there"):
        made(work, **option)


def test_an_endpoint_without_such_an_option_is_named() -> None:
    with pytest.raises(InvalidJobError, match="max_tokens: /v1/embeddings generates no text"):
        made("hello", endpoint=Endpoint.EMBEDDINGS, max_tokens=5)
    with pytest.raises(InvalidJobError, match="system: /v1/completions has no system message"):
        made("hello", endpoint=Endpoint.COMPLETIONS, system="Be kind.")


def test_the_value_of_an_option_is_checked_like_the_body() -> None:
    with pytest.raises(InvalidJobError, match=r"body\.max_tokens"):
        made("hello", max_tokens=-5)


@pytest.mark.parametrize(("priority", "number"), [("urgent", 9), ("Batch", 1), ("7", 7), (0, 0)])
def test_a_priority_has_a_name_or_a_number(priority: str | int, number: int) -> None:
    assert made("hello", priority=priority).priority == number
    assert made(Job(body=BODY), priority=priority).priority == number


@pytest.mark.parametrize("priority", ["soon", "10", "-1", "", "\u0663"])
def test_another_priority_is_refused_with_those_that_there_are(priority: str) -> None:
    with pytest.raises(InvalidJobError, match=r"priority: .* is neither a number .* urgent \(9\)"):
        made("hello", priority=priority)


def test_only_a_turn_has_instructions_and_they_count_as_its_body_does() -> None:
    assert made("hello", instructions="Be kind.", session_id="talk").instructions == "Be kind."
    with pytest.raises(InvalidJobError, match="instructions: only a turn of a session"):
        made("hello", instructions="Be kind.")
    with pytest.raises(InvalidJobError, match=r"body, instructions are .* bytes together"):
        made("hello", instructions="x" * 2**20, session_id="talk")


def test_only_a_turn_can_find_its_session_busy_or_change_its_state() -> None:
    options: dict[str, Any] = {"on_busy": "reject", "state_patch": {"topic": "the sea"}}
    for name, value in options.items():
        assert getattr(made("hello", session_id="talk", **{name: value}), name) == value
        for work in ("hello", BODY, Job(body=BODY)):
            with pytest.raises(InvalidJobError, match=f"{name}: only a session .* set session_id, too"):
                made(work, **{name: value})


def test_a_prompt_with_the_text_of_a_job_says_after_which_job() -> None:
    text = "Merge: {{jobs.0.text}}"
    made(text, after=["01890a5d-ac96-774b-bcce-b302099a8057"])
    others: tuple[dict[str, Any], ...] = ({}, {"after": []}, {"after": None}, {"endpoint": "/v1/completions"})
    for options in others:
        with pytest.raises(
            InvalidJobError, match=r"body: \{\{jobs.0.text\}\} stands for .* give the whole body"
        ):
            made(text, **options)
    with pytest.raises(InvalidJobError, match=r"\{\{jobs.3.text\}\} stands for"):
        made("hello", system="You merge {{ jobs.3.text }}")
    # Other braces are the model's. So is a whole body: it may have the words of anybody.
    for prompt in ("{{jobs.x.text}}", "{{jobs.0.usage}}", "{jobs.0.text}", "{{name}}"):
        made(prompt)
    whole = {"messages": [{"role": "user", "content": text}]}
    for work in (whole, Job(body=whole)):
        assert made(work).body == whole


@pytest.mark.parametrize(
    ("work", "options", "problem"),
    [
        ("Who?", {"retrieve": {"index": "docs", "min_scor": 1}}, r"retrieve\.min_scor: .*did you mean"),
        ("Who?", {"retrieve": {"index": "Docs"}}, "retrieve.index"),
        ("Who?", {"retrieve": {"index": "docs", "k": 101}}, "retrieve.k: 101 is above the maximum 100"),
        (Job(body=BODY, passages=()), {}, "passages: only for a job with retrieve"),
        ("Who?", {"retrieve": {"index": "docs"}, "endpoint": "/v1/completions"}, "only /v1/chat/completions"),
        (
            {"messages": [{"role": "system", "content": "x"}]},
            {"retrieve": {"index": "d"}},
            "the last message",
        ),
    ],
)
def test_what_to_retrieve_has_to_be_possible(work: Any, options: Any, problem: str) -> None:
    with pytest.raises(InvalidJobError, match=problem):
        make_job(work, options, max_body_bytes=1000)


@pytest.mark.parametrize(
    "delay_s", [pytest.param(10**400, id="huge"), -1, float("nan"), float("inf"), "5", True]
)
def test_a_delay_is_a_number_of_seconds(delay_s: Any) -> None:
    with pytest.raises(InvalidJobError, match=r"^delay_s: .* is not a number of seconds from 0 to 2592000"):
        made("hello", delay_s=delay_s)


def test_predecessors_are_any_iterable_but_a_single_one() -> None:
    job, other = Job(body=BODY), Job(body=BODY)
    assert made("hello", after=(it for it in [job, other.id])).after == (job.id, other.id)
    for single, name in ((job, "a Job"), (job.id, "a string")):
        with pytest.raises(InvalidJobError, match=f"^after: must be a list, not {name}"):
            made("hello", after=single)


@pytest.mark.parametrize("work", [None, 5, b"hello", ["hello"]])
def test_work_of_another_type_is_what_the_error_is_about(work: Any) -> None:
    for options in ({}, {"max_tokens": 5}):
        with pytest.raises(InvalidJobError, match="body: must be an object, not "):
            made(work, **options)


@pytest.mark.parametrize("name", ["id", "pool", "session_id", "tenant", "idempotency_key"])
def test_half_a_surrogate_pair_is_named_in_every_text(name: str) -> None:
    with pytest.raises(InvalidJobError, match=f"^{name}: has half a surrogate pair, which no UTF-8 text"):
        made("hello", **{name: "\ud800"})


def test_a_pool_of_bytes_is_no_name() -> None:
    with pytest.raises(InvalidJobError, match="pool: must be a string, not a bytes"):
        check_pool(b"default")  # type: ignore[arg-type]
