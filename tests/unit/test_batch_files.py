"""A batch's files: what is refused, and what survives a crash. No service is asked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR
from typing import Any, cast

import pytest

from inferfleet.producer.batch import Batch, BatchPlan, batch_status, files
from inferfleet.producer.batch import batch as batches
from inferfleet.producer.batch.files import ID_PREFIX, record_path
from inferfleet.producer.batch.line_ids import line_job_id, line_of, new_batch_id
from inferfleet.producer.batch.source import SORTED_AT_ONCE
from inferfleet.producer.job_making import JobOptions
from inferfleet.schemas import Job
from inferfleet.schemas.batch import BatchLineError, BatchOutputLine, BatchResponse
from inferfleet.schemas.errors import BatchError, BatchOutputError, UnknownPoolError
from inferfleet.schemas.settings import ProducerSettings

SETTINGS = ProducerSettings(max_body_bytes=1000)


def request(custom_id: str, **changes: Any) -> str:
    body = {"messages": [{"role": "user", "content": custom_id}]}
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    )


PlanOf = Callable[..., BatchPlan]


@pytest.fixture
def plan_of(tmp_path: Path) -> PlanOf:
    def plan(*lines: str, **options: Any) -> BatchPlan:
        source = tmp_path / "in.jsonl"
        source.write_text("".join(f"{line}\n" for line in lines))
        return BatchPlan(source=source, output=tmp_path / "out.jsonl", options=cast("JobOptions", options))

    return plan


def answer(batch: Batch, line: int, custom_id: str = "a") -> BatchOutputLine:
    job_id = line_job_id(batch.record.id, line)
    return BatchOutputLine(
        id=ID_PREFIX + job_id,
        custom_id=custom_id,
        response=BatchResponse(request_id=job_id, body={"text": "x" * line}),
    )


def failure(batch: Batch, line: int) -> BatchOutputLine:
    return BatchOutputLine(
        id=ID_PREFIX + line_job_id(batch.record.id, line),
        custom_id=None,
        error=BatchLineError(code="timeout", message="too slow", line=line),
    )


def begun(plan: BatchPlan, *lines: int) -> bytes:
    """Begin a batch, and answer these lines. Returns its output."""
    with Batch.opened(plan, SETTINGS) as batch:
        for line in lines:
            batch._write(answer(batch, line))
    return plan.output.read_bytes()


def refused(plan: BatchPlan) -> str:
    with pytest.raises(BatchError) as raised, Batch.opened(plan, SETTINGS):
        pass
    return str(raised.value)


def unfinished(plan: BatchPlan) -> list[int]:
    with Batch.opened(plan, SETTINGS) as batch:
        return [line.number for line in batch._unfinished() if line is not None]


# Ids


def test_a_jobs_id_says_which_line_of_which_batch_it_answers() -> None:
    batch, other = new_batch_id(), new_batch_id()
    ids = {line_job_id(batch, line, attempt) for line in (1, 2, 2**36 - 1) for attempt in (0, 1)}

    assert len(ids) == 6
    for job_id in ids:
        Job(id=job_id, body={})
        assert job_id[14] == "8"
        assert line_of(other, job_id) is None
    assert [line_of(batch, line_job_id(batch, 2**36 - 1, attempt)) for attempt in (0, 1)] == [2**36 - 1] * 2
    assert line_of(batch, "not an id") is None


# What cannot become a batch


def test_two_lines_with_the_same_custom_id_are_refused_before_anything_runs(plan_of: PlanOf) -> None:
    plan = plan_of(request("a"), request("b"), request("a"), "{not JSON", request("b"))

    message = refused(plan)

    assert "lines 1 and 3 have the same custom_id 'a'; lines 2 and 5 have the same custom_id 'b'" in message
    assert str(plan.source) in message
    assert not plan.output.exists()
    assert not record_path(plan.output).exists()


def test_a_repeated_custom_id_is_found_far_apart(plan_of: PlanOf) -> None:
    lines = [request(f"r-{number}", body={}) for number in range(SORTED_AT_ONCE + 10)]
    assert f"lines 3 and {len(lines) + 1} have" in refused(plan_of(*lines, request("r-2")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no lines"),
        (b"\n  \n", "has no lines"),
        ("{}\n".encode("utf-16"), "is UTF-16; a batch needs lines of text in UTF-8"),
        ("{}\n".encode("utf-16-le"), "is binary"),
        (b"\x1f\x8b\x08" + b"x" * 20, "is compressed (gzip)"),
        (b"PK\x03\x04" + b"x" * 20, "is compressed (zip)"),
        (b'{\n  "custom_id": "a"\n}\n', "no line of "),
        (b'{"prompt": "hello"}\n', "line 1: custom_id: is missing"),
        (
            request("a", not_before="2026-12-01T00:00:00Z").encode(),
            "not_before: a line of a batch has no",
        ),
        (request("a", body={"after": ["x"]}).encode(), "body.after: a line of a batch has no options"),
        (request("a", body={"inferfleet": {}}).encode(), "body.inferfleet: a line of a batch has no options"),
    ],
)
def test_an_input_without_a_request_is_refused(plan_of: PlanOf, content: bytes, message: str) -> None:
    plan = plan_of()
    plan.source.write_bytes(content)
    assert message in refused(plan)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("# requests\n{0}\n", 2),
        ("request\nhello\n{0}\n", 3),
        ("[\n{0},\n{1}\n]\n", 2),
        ("[{0},\n{1}]\n", 1),
        ("[{0},{1}]\n", 1),
    ],
)
def test_requests_do_not_become_prompts_because_of_another_first_line(
    plan_of: PlanOf, content: str, line: int
) -> None:
    plan = plan_of()
    plan.source.write_text(content.format(request("a"), request("b")))

    assert f"line {line} of {plan.source} is a request, but the first line is not" in refused(plan)
    assert unfinished(replace(plan, prompts=True))[0] == 1


def test_prompts_may_be_json(plan_of: PlanOf) -> None:
    assert unfinished(plan_of("[INST] hello", '{"a": 1}: what is a?', '[{"body": 1}]', "[]")) == [1, 2, 3, 4]


def test_an_input_that_cannot_be_read_is_named(plan_of: PlanOf) -> None:
    plan = plan_of()
    plan.source.unlink()
    assert refused(plan) == f"cannot read {plan.source}: No such file or directory"


def test_an_output_that_exists_is_left_alone(plan_of: PlanOf) -> None:
    plan = plan_of("hello")
    plan.output.write_text("precious\n")
    assert "exists" in refused(plan)
    assert plan.output.read_text() == "precious\n"


def test_an_output_that_cannot_be_is_refused_before_the_input_is_read(plan_of: PlanOf) -> None:
    plan = plan_of("hello")
    assert "cannot be both" in refused(replace(plan, errors=plan.output))
    nowhere = plan.output.parent / "nowhere" / "out.jsonl"
    assert f"{nowhere.parent} is not a folder" in refused(replace(plan, output=nowhere))


def test_options_of_prompts_are_refused_for_whole_requests(plan_of: PlanOf) -> None:
    assert "max_tokens: only for prompts" in refused(plan_of(request("a"), max_tokens=5))
    assert "endpoint: only for prompts" in refused(plan_of(request("a"), endpoint="/v1/completions"))


def test_what_would_end_a_whole_batch_is_refused(plan_of: PlanOf) -> None:
    assert "retrieve: not for batches" in refused(plan_of(request("a"), retrieve={"index": "docs"}))


# Going on


def test_a_batch_goes_on_with_the_lines_that_are_not_done(plan_of: PlanOf) -> None:
    plan = plan_of(*(request(name) for name in "abcd"))
    begun(plan, 3)
    with Batch.opened(plan, SETTINGS) as batch:
        batch._write(failure(batch, 1))

    assert unfinished(plan) == [2, 4]
    assert plan.error_file.read_text().count("\n") == 1
    status = batch_status(plan.output)
    assert (status.succeeded, status.failed, status.record.lines, status.running) == (1, 1, 4, False)


@pytest.mark.parametrize("torn", [b'{"id":"batch_re', b"\0" * 700, b"\0\0\n\0", b"x\n"])
def test_what_a_crash_has_torn_is_dropped(plan_of: PlanOf, torn: bytes) -> None:
    plan = plan_of(*"abcd")
    whole = begun(plan, 1, 2)
    plan.output.write_bytes(whole + torn)

    assert batch_status(plan.output).succeeded == 2
    assert unfinished(plan) == [3, 4]
    assert plan.output.read_bytes() == whole


def test_whole_lines_behind_damaged_ones_are_kept(plan_of: PlanOf) -> None:
    plan = plan_of(*"abcd")
    one, two, three = begun(plan, 1, 2, 3).splitlines(keepends=True)
    damaged = one + b"\0" * len(two) + b"\n" + two[:9] + b"\n" + three + one + two
    plan.output.write_bytes(damaged)
    before = plan.output.with_name("before")
    before.hardlink_to(plan.output)

    with Batch.opened(plan, SETTINGS) as batch:
        assert plan.output.read_bytes() == one + three + two
        # A crash while lines are moved within a file could damage them.
        assert before.read_bytes() == damaged
        assert "another run writes to" in refused(plan)
        batch._write(answer(batch, 4))
    assert unfinished(plan) == []


def test_a_last_line_without_its_line_feed_gets_it(plan_of: PlanOf) -> None:
    plan = plan_of(*"abcd")
    whole = begun(plan, 1, 2)
    plan.output.write_bytes(whole[:-1])

    assert begun(plan, 3).splitlines()[:2] == whole.splitlines()
    assert plan.output.read_bytes().count(b"\n") == 3


def test_lines_of_something_else_are_never_dropped(plan_of: PlanOf) -> None:
    plan = plan_of(*"abcd")
    whole = begun(plan, 1)
    plan.output.write_bytes(whole + b'{"note": 1}\n')

    assert f"{plan.output}, line 2 is not of this batch" in refused(plan)
    assert plan.output.read_bytes() == whole + b'{"note": 1}\n'


def test_a_torn_record_is_no_batch(plan_of: PlanOf) -> None:
    plan = plan_of("a")
    begun(plan, 1)
    record_path(plan.output).write_bytes(record_path(plan.output).read_bytes()[:40])
    assert "is not the record of a batch" in refused(plan)


def test_a_changed_input_is_refused(plan_of: PlanOf) -> None:
    plan = plan_of("a", "b")
    begun(plan, 1)
    plan.source.write_text("a\nc\n")
    assert "is not what it was when this batch began" in refused(plan)


def test_a_batch_reads_the_input_that_it_is_given_not_what_is_at_the_old_path(plan_of: PlanOf) -> None:
    plan = plan_of("old 1", "old 2")
    begun(plan, 1)
    moved = replace(plan, source=plan.source.rename(plan.source.with_name("monday.txt")))
    plan.source.write_text("new 1\nnew 2\n")

    with Batch.opened(moved, SETTINGS) as batch:
        assert [line and line.text for line in batch._unfinished()] == [b"old 2"]


def test_a_batch_can_be_moved_with_its_folder(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of("a", "b", "c")
    begun(plan, 1)
    with Batch.opened(plan, SETTINGS) as batch:
        batch._write(failure(batch, 2))
    there = tmp_path / "there"
    there.mkdir()
    names = [path.name for path in tmp_path.iterdir() if path.is_file()]
    for name in names:
        (tmp_path / name).rename(there / name)

    status = batch_status(there / "out.jsonl")
    assert (status.succeeded, status.failed) == (1, 1)
    assert unfinished(replace(plan, source=there / "in.jsonl", output=there / "out.jsonl")) == [3]
    assert len(names) == 4
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl"])
def test_an_output_that_has_been_moved_away_is_not_run_again(plan_of: PlanOf, name: str) -> None:
    plan = plan_of("a", "b")
    begun(plan, 1)
    path = plan.output.with_name(name)
    path.rename(path.with_name("delivered.jsonl"))

    assert f"{path} has been moved or deleted since its batch began" in refused(plan)
    assert not path.exists()
    record_path(plan.output).unlink()
    path.with_name("delivered.jsonl").unlink()
    plan.output.unlink(missing_ok=True)
    assert unfinished(plan) == [1, 2]


def test_a_batch_whose_pool_was_unknown_when_it_began_has_not_begun(plan_of: PlanOf) -> None:
    with pytest.raises(UnknownPoolError), Batch.opened(plan_of("a", pool="typo"), SETTINGS):
        raise UnknownPoolError("there is no such pool")

    plan = plan_of("a", pool="right")
    assert begun(plan, 1)
    with pytest.raises(UnknownPoolError), Batch.opened(plan, SETTINGS):
        raise UnknownPoolError("somebody has deleted the pool")
    assert unfinished(plan) == []


def test_other_options_are_refused(plan_of: PlanOf) -> None:
    begun(plan_of("a", pool="one", max_tokens=3))
    assert "began with pool = 'one', not 'two'" in refused(plan_of("a", pool="two", max_tokens=3))
    assert "began with max_tokens = 3, not None" in refused(plan_of("a", pool="one"))


def test_two_runs_of_a_batch_at_once_are_refused(plan_of: PlanOf) -> None:
    plan = plan_of("a", "b")
    with Batch.opened(plan, SETTINGS):
        assert "another run writes to" in refused(plan)
        assert batch_status(plan.output).running
    assert unfinished(plan) == [1, 2]


def test_a_full_disk_is_an_error_that_names_the_file(plan_of: PlanOf) -> None:
    plan = plan_of("a", "b")
    with Batch.opened(plan, SETTINGS) as batch:
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("there is no /dev/full")
        with full.open("wb") as file:
            batch._answers._fd, own = file.fileno(), batch._answers._fd
            with pytest.raises(BatchOutputError, match=r"cannot write .*out\.jsonl: No space left"):
                batch._write(answer(batch, 1))
            batch._answers._fd = own
    assert unfinished(plan) == [1, 2]


def test_lines_that_cannot_be_brought_to_disk_are_an_error_however_often_one_asks(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    under_way, failing = threading.Event(), threading.Event()

    def fsync(_: int) -> None:
        synced.append(len(synced))
        if len(synced) == 2:
            under_way.set()
            assert failing.wait(60)
            raise OSError(errno.ENOSPC, "No space left on device")

    with Batch.opened(plan_of("a", "b"), SETTINGS) as batch:
        monkeypatch.setattr(os, "fsync", fsync)
        # What an earlier run wrote may not be on disk yet.
        batch._answers.sync()
        batch._answers.sync()
        assert len(synced) == 1
        batch._write(answer(batch, 1))
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(batch._answers.sync)
            assert under_way.wait(60)
            second = threads.submit(batch._answers.sync)
            failing.set()
            for sync in (first, second):
                with pytest.raises(BatchOutputError, match="No space left"):
                    sync.result(60)
        # The kernel tells a failure once.
        assert len(synced) == 2


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_no_error(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    plan = plan_of("a")
    name = "open" if error == errno.EACCES else "fsync"
    real = getattr(os, name)

    def failing(what: int | Path, *arguments: Any) -> Any:
        if what == plan.output.parent or (isinstance(what, int) and S_ISDIR(os.fstat(what).st_mode)):
            raise OSError(error, os.strerror(error))
        return real(what, *arguments)

    monkeypatch.setattr(os, name, failing)
    assert unfinished(plan) == [1]


def test_a_file_system_without_locks_is_named(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("a")
    begun(plan, 1)

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert refused(plan) == f"cannot write {plan.output}: No locks available"
    with pytest.raises(BatchError, match="No locks available"):
        batch_status(plan.output)


def test_a_run_begins_although_somebody_looks_at_its_status(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("a")
    begun(plan)
    with plan.output.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        monkeypatch.setattr(files, "LOCK_PAUSES_S", (0.0, 0.1))
        assert unfinished(plan) == [1]


def test_two_outputs_that_differ_in_their_suffix_have_two_error_files(plan_of: PlanOf) -> None:
    plan = plan_of("a")
    names = {replace(plan, output=plan.output.with_suffix(end)).error_file.name for end in ("", ".jsonl")}
    assert names == {"out.errors", "out.errors.jsonl"}


@pytest.mark.parametrize("name", ["in.jsonl", "out.jsonl"])
def test_a_path_that_may_not_be_looked_at_is_named(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plan = plan_of("a")
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert refused(plan).endswith(f"{name}: Permission denied")


def test_a_batch_that_nobody_began_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="no batch has the output"):
        batch_status(tmp_path / "out.jsonl")


# Lines


def test_blank_lines_are_counted_and_do_not_run(plan_of: PlanOf) -> None:
    plan = plan_of("", "first", "  ", "second")
    assert unfinished(plan) == [2, 4]
    assert batch_status(plan.output).record.lines == 2


def test_what_is_appended_to_the_input_is_not_of_the_batch(plan_of: PlanOf) -> None:
    plan = plan_of("first")
    plan.source.write_text("first\nlast")
    with Batch.opened(plan, SETTINGS) as batch:
        plan.source.write_text("first\nlast, and more\nmore\n")
        assert [line and line.text for line in batch._unfinished()] == [b"first", b"last"]


def test_a_line_can_be_read_again(plan_of: PlanOf) -> None:
    with Batch.opened(plan_of("", "first", "x" * 50_000, "last"), SETTINGS) as batch:
        lines = [line for line in batch._unfinished() if line is not None]
        assert [batch._read_again(line) for line in lines] == lines


def test_a_long_stretch_of_done_lines_lets_others_have_their_turn(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "SKIPPED_AT_ONCE", 2)
    plan = plan_of(*"abcdef")
    begun(plan, 1, 2, 3, 4, 5)
    with Batch.opened(plan, SETTINGS) as batch:
        assert [line and line.number for line in batch._unfinished()] == [None, None, 6]


def test_a_line_that_is_too_long_is_read_in_pieces_and_does_not_hide_the_next(plan_of: PlanOf) -> None:
    plan = plan_of("x" * 50_000, "short")
    with Batch.opened(plan, SETTINGS) as batch:
        assert [line and line[:2] for line in batch._unfinished()] == [(1, None), (2, b"short")]
