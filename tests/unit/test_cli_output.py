"""How commands write, and what they say when they end before their job does."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import inferfleet.cli.terminal
from inferfleet.cli.going_on import goes_on, several_go_on, submitting
from inferfleet.schemas.errors import (
    JobFailedError,
    JobNotFoundError,
    PublishUnconfirmedError,
    QueueFullError,
    ServiceUnreachableError,
)
from inferfleet.schemas.printable import printable

FOLDER = Path(inferfleet.cli.terminal.__file__).parent


@pytest.mark.parametrize("module", sorted(path.name for path in FOLDER.glob("*.py")))
def test_commands_write_through_what_makes_text_printable(module: str) -> None:
    if module == "terminal.py":
        return
    written = re.findall(r"sys\.std(?:out|err)\.write\((?!\"\"\))|\bprint\(", (FOLDER / module).read_text())
    through_rich = (FOLDER / module).read_text().count("onsole.print(")
    assert len(written) == through_rich, "write with terminal.out and terminal.err"


@pytest.mark.parametrize(
    "ended",
    [asyncio.CancelledError(), KeyboardInterrupt(), ServiceUnreachableError("Redis does not answer")],
)
def test_a_wait_that_ends_early_names_the_job_and_the_command_that_goes_on(
    capsys: pytest.CaptureFixture[str], ended: BaseException
) -> None:
    with pytest.raises(type(ended)), goes_on("j-1", "get --wait"):
        raise ended
    assert capsys.readouterr() == (
        "",
        "inferfleet: job j-1 has not ended: continue with `inferfleet get --wait j-1`\n",
    )


@pytest.mark.parametrize(
    "ended",
    [
        JobFailedError(job_id="j-1", state="failed", code=None, message=""),
        JobNotFoundError("j-1"),
        BrokenPipeError(),
    ],
)
def test_a_job_that_does_not_go_on_is_not_said_to(
    capsys: pytest.CaptureFixture[str], ended: Exception
) -> None:
    with pytest.raises(type(ended)), goes_on("j-1", "get --wait"):
        raise ended
    assert capsys.readouterr() == ("", "")


def test_a_wait_for_several_jobs_says_how_many_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), several_go_on(lambda: 2):
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    assert said == "inferfleet: jobs that have not ended: 2; continue with the same command\n"
    with pytest.raises(BrokenPipeError), several_go_on(lambda: 2):
        raise BrokenPipeError
    assert capsys.readouterr().err == ""


def test_a_submit_that_ends_in_doubt_names_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    for doubt in (asyncio.CancelledError(), PublishUnconfirmedError("the connection broke")):
        with pytest.raises(type(doubt)), submitting("j-1"):
            raise doubt
        said = capsys.readouterr().err
        assert said == "inferfleet: job j-1 may have been accepted: check with `inferfleet get j-1`\n"
    with pytest.raises(QueueFullError), submitting("j-1"):
        raise QueueFullError("full")
    assert capsys.readouterr().err == ""


def test_what_is_printable_stays_as_it_is_and_what_is_not_is_spelled_as_in_json() -> None:
    text = "naïve 😀 عربى\tתשע\nnext"
    assert printable(text) == text
    assert printable(text, one_line=True) == text.replace("\t", "\\u0009").replace("\n", "\\u000a")
    assert printable("a\x1b[31m\r\x9b\x7f\u202e\u2028\ud800") == (
        "a\\u001b[31m\\u000d\\u009b\\u007f\\u202e\\u2028\\ud800"
    )
    # A family is joined by a character that nobody sees, and which does no harm.
    assert printable("👨‍👩‍👧") == "👨‍👩‍👧"
