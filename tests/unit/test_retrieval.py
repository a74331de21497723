"""What an index refuses, and how it cuts texts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from inferfleet.producer import Index
from inferfleet.producer.retrieval.chunking import chunks_of
from inferfleet.schemas.errors import RetrievalError
from inferfleet.schemas.retrieval import check_document, check_options, check_where

NOTHING: Any = None
INDEX = Index("docs", tenant="t", jobs=NOTHING, pipeline=NOTHING, searching=NOTHING, counts=NOTHING)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"id": "d"}, "document 'd': text: is missing"),
        ({"id": "d", "text": ""}, "document 'd': text: is empty"),
        ({"id": "", "text": "t"}, "document '': id: is empty"),
        ({"id": "d", "text": "t", "author": "me"}, "document 'd': author: "),
        ({"id": "d", "text": "t", "metadata": {"n": float("nan")}}, r"document 'd': metadata\.n"),
        ({"id": "d", "text": "t", "metadata": {"n": 2**60}}, r"document 'd': metadata\.n"),
        ({"id": "d", "text": "t", "metadata": {"n": [1, 2]}}, r"document 'd': metadata\.n"),
        ({"id": "d", "text": "t", "metadata": {"n": {"a": 1}}}, r"document 'd': metadata\.n"),
        ({"id": "d", "text": "t", "metadata": {"n": "x" * 513}}, r"document 'd': metadata\.n"),
        ({"id": "d", "text": "t", "metadata": dict.fromkeys(map(str, range(33)), 1)}, "at most 32"),
        ({"text": "t"}, "a document: id: is missing"),
        ({"id": "d", "text": "\ud800"}, "document 'd': text: "),
    ],
)
def test_a_document_that_cannot_be_is_named(document: dict[str, Any], told: str) -> None:
    with pytest.raises(RetrievalError, match=f"^{told}" if told.startswith("doc") else told):
        check_document(document)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"year": {"above": 3}}, r"where\.year"),
        ({"year": {}}, r"where\.year"),
        ({"year": {"gt": None}}, r"where\.year: [\s\S]*give a number for at least one of gt"),
        ({"year": {"gte": "2020"}}, r"where\.year"),
        ({"year": None}, r"where\.year"),
        ({"year": []}, r"where\.year"),
        ({"year": [[1]]}, r"where\.year"),
        ({"": 1}, "where"),
        (dict.fromkeys(map(str, range(17)), 1), "where: has 17 items; at most 16"),
        ({"a": [1] * 60, "b": ["x"] * 4, "c": 1}, "where: has 65 values in all; at most 64 are allowed"),
    ],
)
def test_conditions_that_cannot_be_are_named(where: dict[str, Any], told: str) -> None:
    with pytest.raises(RetrievalError, match=f"^{told}"):
        check_where(where)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pool": "Not A Pool"}, r"the index\.pool: 'Not A Pool' is not a pool name"),
        ({"pool": "p", "chunk_chars": 8001}, "the index.chunk_chars: 8001 is above the maximum 8000"),
        (
            {"pool": "p", "chunk_chars": 99, "overlap_chars": 50},
            r"the index\.overlap_chars: 50 is more than half of chunk_chars, which is 99",
        ),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RetrievalError, match=told):
        check_options(options)


async def test_a_search_that_cannot_be_is_refused_before_anything_is_asked() -> None:
    for k in (0, -1, 1001):
        with pytest.raises(RetrievalError, match=f"k: {k} is not a number from 1 to 1,000"):
            await INDEX.search("text", k=k)
    for text, told in (
        ("", "no words"),
        (" \n", "no words"),
        ("x" * 8001, "8,001 characters; at most 8,000"),
    ):
        with pytest.raises(RetrievalError, match=f"text: has {told}"):
            await INDEX.search(text)
    with pytest.raises(RetrievalError, match="index 'Docs!': a name has"):
        Index("Docs!", tenant="t", jobs=NOTHING, pipeline=NOTHING, searching=NOTHING, counts=NOTHING)


@pytest.mark.parametrize("seed", range(20))
def test_chunks_hold_the_whole_text_in_order_and_overlap_no_more_than_asked(seed: int) -> None:
    chosen = random.Random(seed)
    breaks = chosen.choices([" ", "\n", "\n\n", ". ", "", "é", "😀", "x" * 30], k=1000)
    text = "".join(f"{number:04}{each}" for number, each in enumerate(breaks))
    size = chosen.randrange(80, 300)
    overlap = chosen.randrange(size // 2 + 1)

    position = end = 0
    for chunk in chunks_of(text, size=size, overlap=overlap):
        assert 0 < len(chunk) <= size
        position = text.index(chunk, position)
        assert not text[end:position].strip(), "nothing is left out"
        assert end - position <= overlap
        end = position + len(chunk)
    assert not text[end:].strip()


def test_a_chunk_ends_where_a_reader_would_end_it() -> None:
    text = "First paragraph, two sentences. This is the other.\n\nSecond paragraph. It goes on for longer."
    assert list(chunks_of(text, size=60, overlap=0)) == [
        "First paragraph, two sentences. This is the other.",
        "Second paragraph. It goes on for longer.",
    ]
    assert list(chunks_of("one two three four", size=10, overlap=4)) == ["one two", "three four"]


def test_ten_megabytes_without_a_break_are_cut_all_the_same() -> None:
    assert sum(1 for _ in chunks_of("x" * 10_000_000, size=1000, overlap=100)) == 11_111
