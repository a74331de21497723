"""Headers of any kind are read without an error, and written again as they came."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, encode

from inferfleet.wire.rabbitmq.frames import SpelledProperties, content_header, publishing
from inferfleet.wire.rabbitmq.headers import FieldTable, field_table

texts = st.text(max_size=10)
values = st.recursive(
    st.one_of(
        texts,
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.none(),
        st.binary(max_size=9).map(bytearray),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.integers(-(2**31) + 1, 2**31 - 1).map(Decimal),
        st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
tables: st.SearchStrategy[dict[str, Any]] = st.dictionaries(texts, values, max_size=5)


def header(properties: bytes, flags: int = 1 << 13) -> bytes:
    return struct.pack(">HHQH", 60, 0, 9, flags) + properties


@given(tables)
def test_a_table_is_read_as_pamqp_does_it(table: dict[str, Any]) -> None:
    spelling = encode.field_table(table)
    expected: Any = decode.field_table(spelling)[1]
    end, found = field_table(spelling, 0)
    assert (end, found) == (len(spelling), expected)
    assert b"".join(entry.spelling for entry in found.entries()) == spelling[4:]
    assert all(entry.sound for entry in found.entries())


@given(st.binary(max_size=200), st.integers(0, 2**16 - 1))
def test_no_properties_break_the_connection(properties: bytes, flags: int) -> None:
    size, found = content_header(header(properties, flags))
    assert size == 9
    dict(found.get("headers", {}))


@given(tables, st.data())
def test_no_headers_break_the_connection_and_what_is_sound_can_be_read(
    table: dict[str, Any], data: st.DataObject
) -> None:
    spelling = bytearray(encode.field_table(table)[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        if spelling:
            spelling[data.draw(st.integers(0, len(spelling) - 1))] = data.draw(st.integers(0, 255))
    _, found = content_header(header(struct.pack(">I", len(spelling)) + bytes(spelling)))
    headers: FieldTable = found["headers"]
    assert b"".join(entry.spelling for entry in headers.entries()) == spelling
    sound = b"".join(entry.spelling for entry in headers.entries() if entry.sound)
    # What is written again can be read by clients that read all or nothing.
    _, read = decode.field_table(struct.pack(">I", len(sound)) + sound)
    assert set(read) == set(headers)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"T" + b"\xff" * 8, id="a time after the year 9999"),
        pytest.param(b"F\x00\x00\x00\x03\x01\xffV", id="a name in a table that is no text"),
        pytest.param(b"A\x00\x00\x00\x09T" + b"\xff" * 8, id="such a time in a list"),
        pytest.param(b"A\x00\x00\x00\x01Z", id="an unknown type in a list"),
        pytest.param(b"A\x00\x00\x00\x02S\x00", id="a value that breaks off"),
        pytest.param(
            b"".join(b"A" + struct.pack(">I", 5 * (100 - depth)) for depth in range(1, 101)), id="too deep"
        ),
    ],
)
def test_what_cannot_be_read_hides_nothing_behind_it(value: bytes) -> None:
    spelling = b"\x01a" + value + b"\x01bt\x01"
    headers = FieldTable(spelling)
    assert headers == {"b": True}
    assert [(entry.name, entry.sound) for entry in headers.entries()] == [(b"a", False), (b"b", True)]


def test_behind_an_unknown_type_nothing_is_known() -> None:
    headers = FieldTable(b"\x01at\x00" + b"\x01bZ" + b"\x01ct\x01")
    assert headers == {"a": False}
    assert [(entry.name, entry.sound) for entry in headers.entries()] == [(b"a", True), (b"", False)]


def test_entries_are_written_as_they_came() -> None:
    entries = b"\x01aB\xfa" + b"\x01bS\x00\x00\x00\x02\xff\xfe" + b"\x01cd\x3f\xb9\x99\x99\x99\x99\x99\x9a"
    properties = SpelledProperties(entries, message_id="m", content_type="text/plain")
    data = publishing(
        1, exchange="", routing_key="q", mandatory=True, properties=properties, body=b"x", frame_max=4096
    )
    assert struct.pack(">I", len(entries)) + entries in data
    assert dict(FieldTable(entries)) == {"a": 250, "b": b"\xff\xfe", "c": 0.1}


def test_properties_that_fit_into_no_frame_are_an_error() -> None:
    """The broker would close the connection, for all who publish on it."""
    properties = SpelledProperties(b"\x01aS\x00\x00\x10\x00" + b"y" * 4096)
    with pytest.raises(ValueError, match=r"4,\d{3} bytes, and the broker takes 4,088"):
        publishing(
            1, exchange="", routing_key="q", mandatory=True, properties=properties, body=b"x", frame_max=4096
        )
