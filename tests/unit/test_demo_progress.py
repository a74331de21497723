"""What the reader of the urgent answer makes of its journal."""

from __future__ import annotations

from datetime import UTC, datetime

from inferfleet.local.demo.progress import Kill, UrgentStream
from inferfleet.schemas.journal import RestartedEntry, RestartReason, RunningEntry, TokenChunk, TokensEntry

NOW = datetime.now(UTC)


def running(worker_id: str, *, resumed_from: int = 0) -> RunningEntry:
    return RunningEntry(at=NOW, attempt=1, worker_id=worker_id, resumed_from=resumed_from)


def tokens(text: str, *, offset: int) -> TokensEntry:
    chunk = TokenChunk(token_ids=tuple(range(len(text.split()))), text=text)
    return TokensEntry(at=NOW, attempt=1, offset=offset, chunks=(chunk,))


def test_each_attempt_has_the_text_that_it_generated() -> None:
    stream = UrgentStream()
    stream.read(running("a"), at_s=0.1)
    stream.read(tokens("Switch it", offset=0), at_s=0.2)
    stream.kill = Kill("a", tokens_seen=2, at_s=0.3)
    stream.read(running("b", resumed_from=2), at_s=3.0)
    stream.read(tokens(" off now", offset=2), at_s=3.1)

    assert [(each.worker_id, each.text) for each in stream.passages] == [
        ("a", "Switch it"),
        ("b", " off now"),
    ]
    assert stream.text == "Switch it off now"
    assert (stream.tokens, stream.first_token_s, stream.resumed_s) == (4, 0.2, 3.1)
    assert not stream.began_again


def test_tokens_that_were_under_way_when_the_worker_died_are_no_resume() -> None:
    stream = UrgentStream()
    stream.read(running("a"), at_s=0.1)
    stream.read(tokens("Switch", offset=0), at_s=0.2)
    stream.kill = Kill("a", tokens_seen=1, at_s=0.3)
    stream.read(tokens(" it", offset=1), at_s=0.4)

    assert stream.resumed_s is None


def test_an_answer_that_begins_again_has_lost_its_text() -> None:
    stream = UrgentStream()
    stream.read(running("a"), at_s=0.1)
    stream.read(tokens("Switch it", offset=0), at_s=0.2)
    restart = RestartedEntry(at=NOW, attempt=2, reason=RestartReason.ANOTHER_MODEL, tokens_wasted=2)
    stream.read(restart, at_s=0.3)

    assert stream.text == ""
    assert stream.began_again
