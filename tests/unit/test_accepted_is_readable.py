"""Whatever a caller hands over is either refused, with the place in the sentence, or read back equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inferfleet.producer import job_making
from inferfleet.producer.job_making import JobOptions
from inferfleet.schemas import Job
from inferfleet.schemas.errors import InvalidJobError
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.json_values import MAX_LEVELS, plain_json
from inferfleet.schemas.merge_patch import merge_patch
from inferfleet.schemas.request import check_request
from inferfleet.schemas.session import SessionExport, Turn, check_export, check_limits, read_export
from inferfleet.wire.rabbitmq.messages import job_message
from inferfleet.wire.redis.session_lanes import Payload

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
LIMIT = 64 * 1024


class Colour(Enum):
    RED = "red"
    NAN = math.nan
    RAW = b"raw"


class Word(StrEnum):
    YES = "yes"


class Number(IntEnum):
    ONE = 1


class Text(str):
    """What a template engine gives out as text."""

    __slots__ = ()


def nested(levels: int, *, lists: bool = False) -> Any:
    """A value of so many levels."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if lists else {"a": value}
    return value


def cyclic() -> Any:
    value: dict[str, Any] = {}
    value["again"] = [value]
    return value


TEXTS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=4),
    st.sampled_from(["", "\0", "\ud83d\ude00", "\ud800", "a\udc80b", "\ufeff", "NaN", "null", "😀"]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400, -(10**400)]),
    st.floats(),
    TEXTS,
    st.binary(max_size=4),
    st.sampled_from(
        [Colour.RED, Colour.NAN, Colour.RAW, Word.YES, Number.ONE, Decimal("1.0"), UUID(int=1), PurePath("a")]
    ),
    st.sampled_from([date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), timedelta(1), Text("markup"), 1j]),
    st.builds(object),
)
KEYS = st.one_of(TEXTS, st.sampled_from([1, None, True, 1.5, (1,), b"k", Word.YES, Text("key"), UUID(int=2)]))
DEEP = st.one_of(
    st.builds(nested, st.integers(MAX_LEVELS - 5, MAX_LEVELS + 60), lists=st.booleans()),
    st.builds(cyclic),
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    DEEP,
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=2).map(tuple),
            st.dictionaries(KEYS, inner, max_size=3),
            st.dictionaries(TEXTS, inner, max_size=2).map(MappingProxyType),
            st.sets(st.integers(), max_size=2),
        ),
        max_leaves=8,
    ),
)
OFFSETS = st.sampled_from(
    [
        UTC,
        timezone(timedelta(hours=14)),
        timezone(-timedelta(hours=12)),
        timezone(timedelta(minutes=19, seconds=32)),
        timezone(timedelta(microseconds=1)),
        None,
    ]
)
MOMENTS = st.one_of(
    st.datetimes(timezones=OFFSETS),
    st.builds(
        datetime,
        st.sampled_from([1, 1969, 1970, 9998, 9999]),
        st.just(1),
        st.just(1),
        tzinfo=OFFSETS,
    ),
    VALUES,
)

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "endpoint": st.one_of(st.just("/v1/chat/completions"), VALUES),
        "pool": st.one_of(st.just("default"), VALUES),
        "priority": VALUES,
        "session_id": st.one_of(TEXTS, VALUES),
        "on_busy": VALUES,
        "state_patch": st.one_of(st.dictionaries(KEYS, VALUES, max_size=3), VALUES),
        "stream": VALUES,
        "expires_at": MOMENTS,
        "timeout_s": VALUES,
        "max_attempts": VALUES,
        "idempotency_key": st.one_of(TEXTS, VALUES),
        "tenant": st.one_of(TEXTS, VALUES),
        "metadata": st.one_of(st.dictionaries(KEYS, st.one_of(TEXTS, VALUES), max_size=3), VALUES),
    },
)

often = settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def make_job(work: Any, options: Any, *, max_body_bytes: int) -> Job:
    return job_making.make_job(work, options, max_body_bytes=max_body_bytes, now=datetime.now(UTC))


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, or why it refuses."""
    try:
        return call(), ""
    except InvalidJobError as error:
        return None, str(error)


def made_or_refused(work: Any, options: Any) -> None:
    job, refusal = attempt(lambda: make_job(work, options, max_body_bytes=LIMIT))
    if refusal:
        # Everybody can print it.
        assert len(refusal.encode()) < 8_000
        return
    for read in (
        Job.model_validate_json(job_message(job, reply_to="client").body),
        (Payload.decode(Payload(job, "client").encode()) or Payload(job, "")).job,
    ):
        assert read == job
        assert check_request(read.endpoint, read.body, max_body_bytes=LIMIT) == job.body
        # What becomes of it in a session.
        assert orjson.loads(orjson.dumps(merge_patch({"old": 1}, read.state_patch))) is not ...
        read_export(one_turn(read).model_dump_json())


def one_turn(job: Job) -> SessionExport:
    turn = Turn(job_id=job.id, messages=job.body.get("messages", ()), at=job.submitted_at)
    return SessionExport(id="s", turns=(turn,), state=job.state_patch)


@often
@given(extra=VALUES, options=OPTIONS)
@example(extra=None, options={"pool": Colour.RAW})
def test_a_chat_is_refused_or_read_back_equal(extra: Any, options: Any) -> None:
    made_or_refused({"messages": HELLO, "extra": extra}, options)


@often
@given(key=KEYS, value=VALUES)
@example(key="user", value=Number.ONE)
def test_a_body_is_refused_or_read_back_equal(key: Any, value: Any) -> None:
    made_or_refused({"messages": [{**HELLO[0], "name": value, key: value}], key: value}, {})


@often
@given(work=VALUES)
def test_whatever_is_no_request_is_refused(work: Any) -> None:
    made_or_refused(work, {})


@often
@given(value=VALUES, moment=MOMENTS, metadata=st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_a_job_is_refused_or_read_back_equal(value: Any, moment: Any, metadata: dict[str, str]) -> None:
    job = Job(body={"messages": HELLO}).model_copy(
        update={
            "body": {"messages": HELLO, "extra": value},
            "submitted_at": moment,
            "state_patch": {"value": value},
            "metadata": metadata,
        }
    )
    made_or_refused(job, {})


@often
@given(state=VALUES)
def test_a_state_is_refused_or_read_back_equal(state: Any) -> None:
    made, refusal = attempt(lambda: plain_json(state, "state"))
    if refusal:
        assert refusal.startswith("state")
        return
    plain, size = made
    text = orjson.dumps(plain)
    assert len(text) == size
    assert orjson.loads(text) == plain
    export = SessionExport(id="s", turns=(), state=plain)
    assert read_export(export.model_dump_json()).state == plain


@often
@given(value=VALUES, model=TEXTS, state=VALUES)
def test_a_session_is_refused_or_imported_as_it_is_exported(value: Any, model: str, state: Any) -> None:
    turn = Turn(job_id=new_job_id(), messages=(), at=datetime.now(UTC)).model_copy(
        update={"messages": ({**HELLO[0], "extra": value},), "model": model}
    )
    given = SessionExport(id="s", turns=(turn,)).model_copy(update={"state": state})
    export, refusal = attempt(lambda: check_export(given))
    if refusal:
        assert refusal.startswith(("turns[0]", "state"))
        return
    (line,) = [each.model_dump_json(exclude_none=True) for each in export.turns]
    assert Turn.model_validate_json(line) == export.turns[0]
    assert read_export(export.model_dump_json()) == export


@given(value=VALUES)
def test_limits_of_a_session_are_refused_or_whole_numbers(value: Any) -> None:
    _, refusal = attempt(lambda: check_limits(idle_ttl_s=value, max_history_tokens=value))
    assert refusal or value is None or 1 <= value <= 100 * 366 * 24 * 3600


@pytest.mark.parametrize("levels", [*range(MAX_LEVELS - 1, 256), 2_000, 100_000])
def test_the_member_that_is_nested_too_deeply_is_named(levels: int) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "foo": nested(levels)}
    if levels == MAX_LEVELS - 1:
        made_or_refused(body, {})
        assert make_job(body, {}, max_body_bytes=LIMIT).body == body
        return
    with pytest.raises(InvalidJobError, match=r"^body\.foo: is nested too deeply: at most 198 levels"):
        make_job(body, {}, max_body_bytes=LIMIT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state_patch": {"a": {"b": math.nan}}}, r"^state_patch\.a\.b: nan is not a JSON number"),
        ({"state_patch": {"a": 2**64}}, r"^state_patch\.a: has a whole number of more than 64 bits"),
        ({"state_patch": {"a": [b"x"]}}, r"^state_patch\.a\[0\]: the type bytes has no form in JSON"),
        ({"state_patch": {1: 1}}, r"^state_patch: has a key that is not a string"),
        ({"state_patch": nested(199)}, r"^state_patch\.a: is nested too deeply"),
        ({"state_patch": cyclic()}, r"^state_patch\.again: is nested too deeply"),
        (
            {"state_patch": {"a": "x" * LIMIT}},
            r"^body, state_patch are [\d,]+ bytes together; the limit is 65,536",
        ),
        (
            {"metadata": {"a": "\ud800"}},
            r"^metadata\.a: has half a surrogate pair \('\\ud800'\) at character 0",
        ),
        ({"metadata": {"\udfff": "a"}}, r"^metadata: has a key that has half a surrogate pair"),
        ({"metadata": {"a": "x" * LIMIT}}, r"^body, metadata are [\d,]+ bytes together"),
        ({"tenant": "\ud800"}, r"^tenant: "),
        ({"priority": 10**5000}, r"^priority: a number of 16,610 bits is above the maximum 9"),
        ({"expires_at": datetime(1, 1, 1, tzinfo=UTC)}, r"^expires_at: .* is below the minimum 1970-01-01"),
        ({"expires_at": datetime(9999, 12, 31, tzinfo=UTC)}, r"^expires_at: .* must be below 9999-01-01"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_the_place_of_a_value_that_nobody_could_read_is_named(options: JobOptions, words: str) -> None:
    with pytest.raises(InvalidJobError, match=words):
        make_job({"messages": HELLO}, options, max_body_bytes=LIMIT)
