"""An index of documents: what is put into it is found, by its tenant alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from tests.integration.conftest import Connect, RunCommand, StartWorker
from tests.integration.own_redis.conftest import as_user

from inferfleet.agents import ToolContext, search_tool
from inferfleet.local.services import Services
from inferfleet.producer import Fleet, Index, JobFilter
from inferfleet.schemas.errors import RetrievalError, UnknownIndexError

RIGHTS = Path(__file__).parents[3] / "docs" / "reference" / "redis.md"


async def documents_found(index: Index, text: str, **conditions: Any) -> set[str]:
    return {hit.document for hit in await index.search(text, k=100, **conditions)}


async def test_the_nearest_chunks_are_found_with_their_document(
    index: Index, pool: str, start_worker: StartWorker
) -> None:
    await start_worker(engine_args={"speed": 0, "max_model_len": 24})
    await index.create(pool=pool, chunk_chars=50, overlap_chars=0)
    assert await index.search("anything") == []
    with pytest.raises(RetrievalError, match=r"a text is too long .* fewer chunk_chars"):
        await index.add([{"id": "too long", "text": "é" * 50}])
    assert not await index.remove("too long")
    long = "One sentence with about fifty characters, or so. Another sentence of about that many characters."
    added = await index.add(
        [{"id": "long", "text": long, "metadata": {"year": 2024}}, {"id": "short", "text": "Brief."}]
    )
    assert (added.documents, added.chunks, added.embedded) == (2, 3, 3)

    hits = await index.search("Another sentence of about that many characters.", k=2)
    assert (hits[0].document, hits[0].metadata, round(hits[0].score, 3)) == ("long", {"year": 2024}, 1.0)
    assert hits[0].text == "Another sentence of about that many characters."
    assert [len(hits), hits[1].score < 0.9] == [2, True]
    assert len(await index.search("Brief.", min_score=0.9)) == 1


async def test_nothing_waits_behind_a_search(
    index: Index, pool: str, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    await start_worker()
    await index.create(pool=pool)
    await index.add([{"id": "d", "text": "text"}])
    # Afterwards it reads the chunk.
    assert len(await index.search("text")) == 1
    assert "vsim" in {client["cmd"].lower() for client in await store.client_list()}, (
        "on a connection of its own"
    )


METADATA: dict[str, dict[str, Any]] = {
    "plain": {"lang": "en", "year": 2024, "draft": False, "tags": ["a", "b"]},
    "other": {"lang": "de", "year": 1999.5, "draft": True, "tags": ["b"]},
    "quote": {"lang": '" in .lang or "" == "', "back\\slash": "ends in \\", 'a" == 1 or .year': 5e-324},
    "odd": {"lang": "é\n\u2028\t'", "year": -1e-5, "and": 2**53},
}


CONDITIONS: list[tuple[dict[str, Any], set[str]]] = [
    ({"lang": "en"}, {"plain"}),
    ({"lang": ["en", "de"]}, {"plain", "other"}),
    ({"year": 2024}, {"plain"}),
    ({"year": {"gte": 1999.5, "lt": 2024}}, {"other"}),
    ({"year": {"gt": -0.00002, "lte": 0}}, {"odd"}),
    ({"draft": False}, {"plain"}),
    ({"draft": 0}, set()),
    ({"tags": "b", "lang": "de"}, {"other"}),
    ({"tags": ["a", "c"]}, {"plain"}),
    ({"lang": '" in .lang or "" == "'}, {"quote"}),
    ({"back\\slash": "ends in \\"}, {"quote"}),
    ({'a" == 1 or .year': {"gte": 0}}, {"quote"}),
    ({"lang": "é\n\u2028\t'"}, {"odd"}),
    ({"and": 2**53}, {"odd"}),
    ({"lang": 'x" or "s" != "'}, set()),
    ({"nobody has this": 1}, set()),
    ({"lang": 0}, set()),
]


async def test_conditions_mean_what_they_say_whatever_is_in_them(
    index: Index, pool: str, start_worker: StartWorker
) -> None:
    await start_worker()
    await index.create(pool=pool)
    await index.add({"id": name, "text": name, "metadata": known} for name, known in METADATA.items())
    found = [(where, await documents_found(index, "hello", where=where)) for where, _ in CONDITIONS]
    assert found == CONDITIONS


async def test_tenants_never_find_what_others_have(
    fleet: Fleet, index: Index, pool: str, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    await start_worker()
    theirs = {name: fleet.index(index.name, tenant=name) for name in ("acme", "acme}:vectors", "*")}
    for name, each in theirs.items():
        with pytest.raises(UnknownIndexError, match=re.escape(repr(name))):
            await each.search("secret")
        await each.create(pool=pool)
        await each.add([{"id": "d", "text": "secret", "metadata": {"owner": name}}])
    for name, each in theirs.items():
        assert [hit.metadata for hit in await each.search("secret", k=1000)] == [{"owner": name}]
        assert [record.tenant for record in await fleet.indexes(tenant=name)] == [name]
    assert index.name not in {record.name for record in await fleet.indexes()}

    search = search_tool(index.name)
    context = ToolContext(run_id="r", call="0.0", tenant="acme", idempotency_key="k", fleet=fleet)
    outcome = await search.call('{"query": "secret"}', context)
    assert ('"owner":"acme"' in outcome.content, outcome.content.count("owner")) == (True, 1)
    assert (await search.call('{"query": "secret", "tenant": "*"}', context)).failed

    assert await theirs["acme"].delete()
    assert not await theirs["acme"].delete()
    assert [len(await theirs[name].search("secret")) for name in ("acme}:vectors", "*")] == [1, 1]
    left = {str(key) for key in await store.keys(f"inferfleet:index:{{{index.name}:acme*")}
    assert {key.partition(f"{{{index.name}:acme")[2][:10] for key in left} == {"}:vectors}"}


async def test_a_document_is_replaced_and_removed_by_its_id(
    index: Index, pool: str, start_worker: StartWorker
) -> None:
    await start_worker()
    await index.create(pool=pool, chunk_chars=50, overlap_chars=0)
    lines = [f"Line {number} of a document in many chunks.\n" for number in range(40)]
    await index.add([{"id": "d", "text": "".join(lines), "metadata": {"v": 1}}, {"id": "e", "text": "e"}])
    changed = await index.add([{"id": "d", "text": "".join(lines[:35]), "metadata": {"v": 2}}])
    assert (changed.chunks, changed.embedded, changed.removed) == (35, 0, 5)
    assert (await index.get()).chunks == 36
    assert await documents_found(index, "x", where={"v": 1}) == set()
    assert len(await index.search("x", k=100, where={"v": 2})) == 35
    assert await index.remove("d")
    assert not await index.remove("d")
    assert await documents_found(index, "x") == {"e"}
    record = await index.get()
    assert (record.documents, record.chunks) == (1, 1)
    with pytest.raises(RetrievalError, match="document 'e' is given twice"):
        await index.add([{"id": "e", "text": "e"}, {"id": "e", "text": "f"}])


@pytest.mark.parametrize("wrong", [{"id": "a", "text": "again"}, {"id": "w"}, None])
async def test_a_document_without_chunks_does_not_count(
    index: Index, pool: str, start_worker: StartWorker, wrong: dict[str, str] | None
) -> None:
    """Whatever ended the call that began it: a document that is given twice or invalid, or its caller."""

    def given() -> Iterator[dict[str, str]]:
        yield {"id": "a", "text": "a"}
        if wrong is None:
            raise ZeroDivisionError
        yield wrong

    await start_worker()
    await index.create(pool=pool)
    with pytest.raises((RetrievalError, ZeroDivisionError)):
        await index.add(given())
    record = await index.get()
    assert (record.documents, record.chunks) == (0, 0)
    await index.add([{"id": "a", "text": "a"}, {"id": "b", "text": "b"}])
    assert (await index.get()).documents == 2
    with pytest.raises((RetrievalError, ZeroDivisionError)):
        await index.add(given())
    assert (await index.get()).documents == 2
    assert [await index.remove("a"), await index.remove("a"), await index.remove("w")] == [True, False, False]
    assert (await index.get()).documents == 1


async def test_what_was_embedded_long_ago_is_embedded_again(
    index: Index, pool: str, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    await start_worker()
    await index.create(pool=pool)
    for lost in (("result",), ("result", "record")):
        assert (await index.add([{"id": "d", "text": "text"}])).embedded == 1
        await index.remove("d")
        for key in [key async for key in store.scan_iter("inferfleet:job:{????????-*}", count=1000)]:
            if await store.hget(key, "pool") == pool.encode():
                await store.delete(key + b":result", *([key] if "record" in lost else []))
    assert (await index.add([{"id": "d", "text": "text"}])).embedded == 1


async def test_another_model_is_refused_by_name(index: Index, pool: str, start_worker: StartWorker) -> None:
    first = await start_worker()
    await index.create(pool=pool)
    await index.add([{"id": "d", "text": "text"}])
    await first.stop()
    second = await start_worker(engine_args={"speed": 0, "embedding_dimensions": 8})
    told = r"embedded by 'simulated' \(.*384 dimensions\), and its pool answers with .*, 8 dimensions\)"
    with pytest.raises(RetrievalError, match=told):
        await index.search("text")
    with pytest.raises(RetrievalError, match=told):
        await index.add([{"id": "other", "text": "other"}])
    await second.stop()
    await start_worker()
    assert (await index.add([{"id": "other", "text": "other"}])).embedded == 1


async def test_a_search_does_not_wait_for_a_pool_without_a_worker(
    fleet: Fleet, index: Index, pool: str, start_worker: StartWorker
) -> None:
    worker = await start_worker()
    await index.create(pool=pool)
    await index.add([{"id": "d", "text": "text"}])
    await worker.stop()
    with pytest.raises(RetrievalError, match=f"pool '{pool}' has not embedded the question within 0.1 s"):
        await index.search("text", timeout_s=0.1)
    assert [job async for job in fleet.list_jobs(JobFilter(pool=pool))] == [], "it was cancelled"


async def test_the_rights_on_the_page_are_enough(
    services: Services, connect: Connect, pool: str, start_worker: StartWorker, store: aioredis.Redis
) -> None:
    await start_worker()
    page = RIGHTS.read_text()
    (rules,) = re.findall(r"^ACL SETUSER producer ((?:.*\\\n)*.*)$", page, re.MULTILINE)
    (more,) = re.findall(r"^Clients that use \[indexes.*`(.*)`", page, re.MULTILINE)
    words = rules.replace("\\\n", "").split()
    await store.execute_command("ACL", "SETUSER", "someone", "reset", *words)
    async with connect(redis_url=as_user(services.redis_url, "someone")) as fleet:
        index = fleet.index(pool)
        with pytest.raises(Exception, match="VCARD"):
            await index.create(pool=pool)
        await store.execute_command("ACL", "SETUSER", "someone", *more.split())
        await fleet.declare_pool(pool)
        await index.create(pool=pool)
        await index.add([{"id": "d", "text": "one"}])
        await index.add([{"id": "d", "text": "two"}])
        assert await documents_found(index, "two", where={"a": 1}) == set()
        assert await documents_found(index, "two") == {"d"}
        await index.delete()


async def test_an_index_is_made_filled_and_searched_from_the_command_line(
    inferfleet: RunCommand, pool: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    await start_worker()
    (tmp_path / "notes.md").write_text("# Notes\n\nWorkers resume answers.")
    (tmp_path / "more.jsonl").write_text('{"id": "m", "text": "More.", "metadata": {"year": 2024}}\n\n')
    (tmp_path / "wrong.jsonl").write_text('{"id": "m"}\n')
    assert (await inferfleet("index", "create", pool, "--pool", pool)).code == 0
    files = [str(tmp_path / name) for name in ("notes.md", "more.jsonl")]
    added = await inferfleet("index", "add", pool, *files)
    assert (added.code, added.out) == (0, f"2 documents with 2 chunks are in {pool}\n")
    (tmp_path / "notes.md").write_text("")
    again = await inferfleet("index", "add", pool, *files)
    assert (again.code, again.out) == (0, f"1 document with 1 chunk is in {pool}\n")
    assert "notes.md has no text, and is left out; a document that it had before is still in" in again.err
    found = await inferfleet("index", "search", pool, "More.", "-k", "1", "--where", '{"year": 2024}')
    assert (found.code, found.out) == (0, "1.000  m\nMore.\n\n")
    listed = await inferfleet("index", "list")
    assert f"{pool}  pool {pool}  2 documents  2 chunks  embedded by 'simulated'" in listed.out
    wrong = await inferfleet("index", "add", pool, str(tmp_path / "wrong.jsonl"))
    assert (wrong.code, wrong.err) == (2, "inferfleet: document 'm': text: is missing\n")
    twice = await inferfleet("index", "add", pool, *[str(tmp_path / "more.jsonl")] * 2)
    assert (twice.code, twice.out) == (2, "")
    assert twice.err.endswith("\ninferfleet: document 'm' is given twice: leave one out\n")
    for option, value in (("--timeout", "nan"), ("--timeout", "1e99"), ("--min-score", "75")):
        wrong = await inferfleet("index", "search", pool, "More.", option, value)
        assert (wrong.code, wrong.out) == (2, "")
        assert re.match(
            r"inferfleet: (timeout_s|min_score): \S+ is not a (number of seconds|score)", wrong.err
        )
    late = await inferfleet("index", "search", pool, "More.", "--timeout", "0.000001")
    assert (late.code, late.out) == (1, "")
    assert (await inferfleet("index", "delete", pool)).out == f"{pool} deleted\n"
