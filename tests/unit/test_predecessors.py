"""What a job takes over from the jobs after which it runs."""

from __future__ import annotations

from typing import Any

from inferfleet.schemas import Job
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.predecessors import after_problem, with_texts


def test_texts_take_the_places_of_all_strings_once() -> None:
    body: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "{{jobs.1.text}}, {{jobs.0.text}}"}]}
        ],
        "user": "{{ jobs.0.text }}",
        "max_tokens": 3,
        "stop": None,
        "{{jobs.0.text}}": "jobs.0.text {{jobs.x.text}} {{jobs.0.usage}} {jobs.0.text}",
    }
    filled = with_texts(body, [r"{{jobs.1.text}} \1 \g<0>", "two"])
    assert filled == {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": r"two, {{jobs.1.text}} \1 \g<0>"}]}
        ],
        "user": r"{{jobs.1.text}} \1 \g<0>",
        "max_tokens": 3,
        "stop": None,
        "{{jobs.0.text}}": "jobs.0.text {{jobs.x.text}} {{jobs.0.usage}} {jobs.0.text}",
    }


def test_a_place_of_no_job_is_a_problem_only_for_a_job_with_others() -> None:
    body = {"prompt": ["{{jobs.2.text}}"]}
    assert after_problem(Job(body=body)) is None
    assert after_problem(Job(body=body, after=(new_job_id(), new_job_id(), new_job_id()))) is None
    problem = after_problem(Job(body=body, after=(new_job_id(), new_job_id())))
    assert problem == (
        "body: {{jobs.2.text}} is the text of job number 2 of after, which has 2, counted from 0"
    )
