"""A batch of a gateway that has bad luck: with heartbeats, keys, the storage, or other gateways' settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inferfleet.gateway import api_keys
from inferfleet.gateway.batches import files, output
from inferfleet.gateway.batches.files import Files
from inferfleet.gateway.batches.jobs import NEW_KEY_S, BatchJobs
from inferfleet.gateway.batches.output import ANSWERS, Parts
from inferfleet.gateway.batches.run import BatchRun, folder_of
from inferfleet.gateway.batches.runner import BatchRunner
from inferfleet.gateway.batches.storage import Storage, StorageError
from inferfleet.gateway.gateway import Gateway
from inferfleet.producer.background import background
from inferfleet.producer.batch.files import ID_PREFIX, LineSet
from inferfleet.producer.batch.line_ids import line_job_id, new_batch_id
from inferfleet.producer.openai.api import OpenAIApi
from inferfleet.producer.openai.models import Models
from inferfleet.producer.openai.refusals import RefusedError, bad_request
from inferfleet.schemas import Endpoint, names
from inferfleet.schemas.batch import (
    BatchOrder,
    BatchOutputLine,
    BatchRecord,
    BatchResponse,
    BatchState,
)
from inferfleet.schemas.errors import InvalidJobError, ServiceUnreachableError, UnknownPoolError
from inferfleet.schemas.job import DEFAULT_TENANT, Job
from inferfleet.wire.redis.batches import BatchLostError, BatchRecords
from inferfleet.wire.redis.pages import read_page
from inferfleet.wire.tasks import cancel_and_wait

MODEL = "maker/model"
KEY_ID = "0123456789ab"


def order(**changes: Any) -> BatchOrder:
    given: dict[str, Any] = {
        "id": "batch_" + new_batch_id().replace("-", ""),
        "tenant": DEFAULT_TENANT,
        "input_file_id": f"file-{'0' * 32}",
        "endpoint": Endpoint.CHAT,
        "completion_window": "24h",
        "created_ms": 0,
        "deadline_ms": 1 << 45,
        "options": {},
        "output_ttl_s": 3600,
    }
    return BatchOrder(**{**given, **changes})


# Jobs


class PassingFleet:
    """Accepts jobs for pools that have a queue. No worker is live unless ``beating`` says so."""

    response_records = None

    def __init__(self) -> None:
        self.beating: dict[str, str] = {}
        self.queues = {"gpu"}
        self.submitted: list[Job] = []

    async def workers(self) -> list[Any]:
        return [SimpleNamespace(pool=pool, model=model) for model, pool in self.beating.items()]

    async def find(self, *_: Any, **__: Any) -> None:
        return None

    async def submit(self, job: Job, **_: Any) -> Job:
        if job.pool not in self.queues:
            raise UnknownPoolError("no queue")
        self.submitted.append(job)
        return job


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> PassingFleet:
    monkeypatch.setattr("inferfleet.producer.openai.models.VALID_S", 0.0)
    return PassingFleet()


def jobs(
    fleet: PassingFleet,
    pools: dict[str, str],
    *,
    keys: Any = None,
    key_id: str | None = None,
    now_ms: int = 0,
) -> BatchJobs:
    gateway = SimpleNamespace(
        trusted_fleet=fleet,
        trusted_api=OpenAIApi(cast("Any", fleet), models=Models(fleet.workers)),
        keys=keys,
        limits=None,
        batches=SimpleNamespace(now_ms=lambda: now_ms),
    )
    return BatchJobs(
        cast("Gateway", gateway), order(key_id=key_id), pool=None, pools=pools, check=lambda: None
    )


def job(model: str = MODEL) -> Job:
    return Job(endpoint=Endpoint.CHAT, body={"model": model, "messages": []}, idempotency_key="k")


@pytest.mark.parametrize("model", [MODEL, "small"])
async def test_jobs_of_a_model_go_to_its_last_pool_while_no_worker_beats(
    fleet: PassingFleet, model: str
) -> None:
    pools: dict[str, str] = {}
    fleet.beating = {model: "gpu"}
    await jobs(fleet, pools).submit(job(model))
    fleet.beating = {}

    # Also for the gateway that takes the batch over.
    await jobs(fleet, dict(pools)).submit(job(model))

    assert [(each.pool, each.body["model"]) for each in fleet.submitted] == [("gpu", model)] * 2


async def test_jobs_of_an_alias_name_no_model(fleet: PassingFleet) -> None:
    pools: dict[str, str] = {}
    for _ in range(2):
        await jobs(fleet, pools).submit(job("gpu"))

    assert [(each.pool, each.body) for each in fleet.submitted] == [("gpu", {"messages": []})] * 2


async def test_jobs_wait_if_the_queue_of_their_models_last_pool_is_gone(fleet: PassingFleet) -> None:
    fleet.queues = set()
    for model in (MODEL, "gpu"):
        with pytest.raises(ServiceUnreachableError):
            await jobs(fleet, {model: "gpu"}).submit(job(model))


async def test_a_model_that_was_never_served_is_refused(fleet: PassingFleet) -> None:
    fleet.beating = {MODEL: "gpu"}
    for model in ("maker/other", "other"):
        with pytest.raises(InvalidJobError, match="unknown"):
            await jobs(fleet, {MODEL: "gpu"}).submit(job(model))


@pytest.mark.parametrize(
    ("keys", "age_s", "refused"),
    [
        (None, 10 * NEW_KEY_S, ServiceUnreachableError),
        (SimpleNamespace(get=lambda _: None, has_had=lambda _: False), 0.0, ServiceUnreachableError),
        (SimpleNamespace(get=lambda _: None, has_had=lambda _: True), 0.0, InvalidJobError),
        (SimpleNamespace(get=lambda _: None, has_had=lambda _: False), NEW_KEY_S, InvalidJobError),
    ],
)
async def test_only_a_key_that_was_revoked_makes_lines_fail(
    fleet: PassingFleet, keys: Any, age_s: float, refused: type[Exception]
) -> None:
    fleet.beating = {MODEL: "gpu"}
    with pytest.raises(refused, match="key"):
        await jobs(fleet, {}, keys=keys, key_id=KEY_ID, now_ms=int(age_s * 1000)).submit(job())
    assert fleet.submitted == []


async def test_a_gateway_knows_which_keys_it_has_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "READ_AGAIN_S", 0.0)
    path = tmp_path / "keys"
    now = datetime.now(UTC)
    secret = api_keys.new_secret(KEY_ID)[1]
    with api_keys.changed_keys(path) as keys:
        keys.append(api_keys.ApiKey(id=KEY_ID, tenant="a", secrets=(secret,), created_at=now))
    ring = api_keys.KeyRing(path, now=lambda: now)
    with api_keys.changed_keys(path) as keys:
        keys.clear()

    assert ring.get(KEY_ID) is None
    assert ring.has_had(KEY_ID)
    assert not ring.has_had(KEY_ID[::-1])


# Parts


class SlowBucket(Storage):
    """A storage whose first file is there only once ``late`` is set. The last to be there counts."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.began = asyncio.Event()
        self.late = Event()
        self.there = asyncio.Event()

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        loop = self._loop
        first = not self.began.is_set()
        loop.call_soon_threadsafe(self.began.set)
        content: list[bytes] = []
        yield content
        if first:
            self.late.wait()
        with super().writing(name) as file:
            file.write(b"".join(content))
        if first:
            loop.call_soon_threadsafe(self.there.set)

    def write(self, name: str, file: Any, content: bytes) -> None:
        file.append(content)

    async def apart(self, call: Any, *arguments: Any) -> Any:
        self._loop = asyncio.get_running_loop()
        return await super().apart(call, *arguments)


@pytest.fixture
async def bucket(tmp_path: Path) -> AsyncIterator[SlowBucket]:
    bucket = SlowBucket(str(tmp_path))
    yield bucket
    bucket.late.set()
    bucket.close()


async def test_a_part_that_was_given_up_replaces_no_later_one(
    bucket: SlowBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PART_S", 0.0)
    batch_id = new_batch_id()
    parts = Parts(bucket, batch_id, folder="parts", runner="r", lines=20, last=20)

    def answer(*numbers: int) -> None:
        for number in numbers:
            line_id = ID_PREFIX + line_job_id(batch_id, number)
            response = BatchResponse(request_id="x", body={})
            parts.append(BatchOutputLine(id=line_id, custom_id=str(number), response=response))

    answer(*range(1, 11))
    async with background(parts.keep_storing()):
        await bucket.began.wait()
        answer(*range(11, 21))
    await parts.store()
    bucket.late.set()
    await bucket.there.wait()

    assert parts.join(ANSWERS, SimpleNamespace(write=lambda _: None), LineSet(20)) == 20


# Runs


class Records:
    """Has the changes of a batch. Another gateway has it from ``lost`` changes of its state on."""

    def __init__(self, *, lost: int = 100) -> None:
        self.states: list[BatchState] = []
        self.lost = lost

    def now_ms(self) -> int:
        return 0

    async def change(self, *_: Any, state: BatchState | None = None, **__: Any) -> BatchState:
        if state is not None:
            self.states.append(state)
        if len(self.states) == self.lost:
            raise BatchLostError
        return state or BatchState.IN_PROGRESS


def running(record: BatchRecord, records: Records, storage: Storage) -> BatchRun:
    settings = SimpleNamespace(max_body_bytes=1 << 20, max_batch_lines=10, batch_in_flight=5)
    gateway = SimpleNamespace(batches=records, settings=settings)
    return BatchRun(
        record,
        runner="x",
        gateway=cast("Gateway", gateway),
        files=cast("Any", SimpleNamespace(storage=storage)),
    )


def write_input(folder: Path, batch: BatchOrder, *, lines: int) -> None:
    path = folder / folder_of(batch.id) / "input"
    path.parent.mkdir(parents=True)
    line = {"method": "POST", "url": Endpoint.CHAT, "body": {}}
    path.write_text("".join(json.dumps({**line, "custom_id": str(n)}) + "\n" for n in range(lines)))


async def test_a_batch_does_not_end_while_lines_are_in_no_part(tmp_path: Path) -> None:
    batch = order()
    write_input(tmp_path / "storage", batch, lines=3)
    records = Records()
    storage = Storage(str(tmp_path / "storage"))
    run = running(BatchRecord(order=batch, state=BatchState.FINALIZING), records, storage)
    found = await run._examine(tmp_path)
    parts = Parts(storage, run._batch_id, folder="parts", runner="r", lines=3, last=3)

    with pytest.raises(StorageError, match="no part"):
        await run._finalize(found, parts, BatchState.COMPLETED)

    assert records.states == [BatchState.FINALIZING]
    storage.close()


class StuckStorage:
    """Cannot remove anything, unless its name has ``good`` in it."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    async def apart(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    def remove(self, name: str) -> None:
        if "good" not in name:
            raise StorageError("stuck")
        self.removed.append(name)


@pytest.mark.parametrize("state", [BatchState.IN_PROGRESS, BatchState.FINALIZING])
async def test_a_batch_that_has_begun_does_not_fail_where_its_input_is_missing(
    tmp_path: Path, state: BatchState
) -> None:
    records, storage = Records(), Storage(str(tmp_path / "not mounted"))
    run = running(BatchRecord(order=order(), state=state), records, storage)

    with pytest.raises(StorageError, match="deleted"):
        await run._advance(tmp_path)

    assert records.states == []
    storage.close()


async def test_a_batch_that_has_begun_goes_on_whatever_the_settings(tmp_path: Path) -> None:
    batch = order()
    write_input(tmp_path, batch, lines=11)
    records, storage = Records(lost=1), Storage(str(tmp_path))
    run = running(BatchRecord(order=batch, state=BatchState.IN_PROGRESS), records, storage)

    with pytest.raises(BatchLostError):
        await run._advance(tmp_path)

    assert records.states == [BatchState.IN_PROGRESS]
    storage.close()


async def test_the_end_of_a_batch_is_told_once_the_storage_works(tmp_path: Path) -> None:
    told: list[Any] = []

    async def tell(*event: Any) -> None:
        told.append(event)

    async def read(*_: Any, **__: Any) -> BatchRecord:
        return BatchRecord(order=order(), state=BatchState.FAILED, since_ms={BatchState.FAILED: 1})

    records = Records()
    run = running(BatchRecord(order=order()), records, cast("Storage", StuckStorage()))
    run._gateway = cast("Gateway", SimpleNamespace(webhooks=SimpleNamespace(tell=tell)))
    records.read = read  # type: ignore[attr-defined]

    with pytest.raises(StorageError):
        await run._conclude()

    assert told == []


# Files


class Expired:
    """Files that have expired."""

    def __init__(self, *file_ids: str) -> None:
        self.file_ids = list(file_ids)
        self.swept = asyncio.Event()

    async def expired(self) -> list[str]:
        if not self.file_ids:
            self.swept.set()
        return list(self.file_ids)

    async def note(self, file_id: str) -> None:
        self.file_ids.append(file_id)

    async def count(self, _: str) -> int:
        return 0

    async def removed(self, file_id: str) -> None:
        self.file_ids.remove(file_id)

    put_off = removed


async def test_a_file_that_cannot_be_removed_holds_up_no_other() -> None:
    records, storage = Expired("bad", "good", "bad too", "good, too"), StuckStorage()
    async with background(Files(cast("Any", records), cast("Any", storage), cast("Any", None)).sweep()):
        await asyncio.wait_for(records.swept.wait(), 30)

    assert storage.removed == ["files/good", "files/good, too"]


async def test_expired_files_are_removed_whatever_has_gone_wrong_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "SWEEP_S", 0.0)
    records, storage = Expired("good"), StuckStorage()
    real, troubles = records.expired, [ValueError("no answer of Redis")]

    async def expired() -> list[str]:
        if troubles:
            raise troubles.pop()
        return await real()

    monkeypatch.setattr(records, "expired", expired)
    async with background(Files(cast("Any", records), cast("Any", storage), cast("Any", None)).sweep()):
        await asyncio.wait_for(records.swept.wait(), 30)

    assert storage.removed == ["files/good"]


async def test_an_upload_that_is_refused_leaves_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive(*_: Any) -> None:
        raise bad_request("no form")

    monkeypatch.setattr(files, "receive", receive)
    records, settings = Expired(), SimpleNamespace(max_files=1)
    with pytest.raises(RefusedError):
        await Files(cast("Any", records), cast("Any", None), cast("Any", settings)).upload(
            cast("Any", None), DEFAULT_TENANT
        )

    assert records.file_ids == []


# Places


class OpenBatches:
    """Open batches, of which those in ``elsewhere`` run in another gateway."""

    def __init__(self) -> None:
        self.orders: dict[str, BatchOrder] = {}
        self.cancelled: set[str] = set()
        self.elsewhere: set[str] = set()
        self.handed_over: list[str] = []
        self.gone: set[str] = set()

    async def close(self, batch_id: str) -> None:
        del self.orders[batch_id]

    def add(self, tenant: str, **changes: Any) -> str:
        one = order(tenant=tenant, **changes)
        self.orders[one.id] = one
        return one.id

    def now_ms(self) -> int:
        return 1000

    async def open(self) -> dict[str, int]:
        ends = {one.id: 0 if one.id in self.cancelled else one.deadline_ms for one in self.orders.values()}
        return dict(sorted(ends.items(), key=lambda item: item[1]))

    async def order(self, batch_id: str) -> BatchOrder | None:
        return None if batch_id in self.gone else self.orders[batch_id]

    async def claim(self, batch_id: str, **_: Any) -> BatchRecord | None:
        await asyncio.sleep(0)
        return None if batch_id in self.elsewhere else BatchRecord(order=self.orders[batch_id])

    async def change(self, batch_id: str, **_: Any) -> BatchState:
        self.handed_over.append(batch_id)
        return BatchState.IN_PROGRESS


@pytest.fixture
async def batches() -> OpenBatches:
    return OpenBatches()


class Places:
    """A runner of batches that never end."""

    def __init__(
        self, batches: OpenBatches, monkeypatch: pytest.MonkeyPatch, at_once: int, keys: Any
    ) -> None:
        async def endless(_: BatchRun) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(BatchRun, "run", endless)
        settings = SimpleNamespace(batches_at_once=at_once)
        gateway = SimpleNamespace(
            batches=batches, settings=settings, new_batch=asyncio.Event(), keys=keys, files=None
        )
        self._runner = BatchRunner(cast("Gateway", gateway))
        self._batches = batches

    async def look(self) -> list[str]:
        """Look for batches, and return the tenants of those that run then."""
        await self._runner._look(cast("Any", SimpleNamespace(storage=StuckStorage())))
        running = self._runner._running
        if handing_over := [task for task in running.values() if task.cancelling()]:
            await asyncio.wait(handing_over)
            await asyncio.sleep(0)
        return sorted(self._batches.orders[batch_id].tenant for batch_id in running)

    async def end(self) -> None:
        await cancel_and_wait(*self._runner._running.values())


@pytest.fixture
async def places(
    batches: OpenBatches, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Places]]:
    made: list[Places] = []

    def make(at_once: int, *, keys: Any = None) -> Places:
        made.append(Places(batches, monkeypatch, at_once, keys))
        return made[-1]

    yield make
    for each in made:
        await each.end()


async def test_a_batch_of_each_tenant_comes_first(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    for tenant in "aaaabbbb":
        batches.add(tenant)

    assert await places(4).look() == ["a", "a", "b", "b"]
    assert batches.handed_over == []


async def test_places_are_shared_by_tenants(batches: OpenBatches, places: Callable[..., Places]) -> None:
    runner = places(4)
    for _ in range(8):
        batches.add("a", deadline_ms=5000)
    assert await runner.look() == ["a"] * 4

    # The tenant with the later deadlines gets its half of the places all the same.
    for _ in range(8):
        batches.add("b", deadline_ms=9000)
    await runner.look()
    assert await runner.look() == ["a", "a", "b", "b"]
    batches.add("c")
    await runner.look()
    assert set(await runner.look()) == {"a", "b", "c"}


async def test_no_batch_is_handed_over_for_one_that_runs_elsewhere(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    runner = places(4)
    for _ in range(8):
        batches.add("a")
    await runner.look()
    batches.elsewhere.add(batches.add("b"))

    assert await runner.look() == ["a"] * 4


async def test_a_batch_that_has_to_end_needs_no_place(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    runner = places(1)
    batches.add("a")
    assert await runner.look() == ["a"]
    batches.add("a", deadline_ms=999)
    assert await runner.look() == ["a", "a"]
    cancelled = batches.add("a")
    assert await runner.look() == ["a", "a"]
    batches.cancelled.add(cancelled)
    assert await runner.look() == ["a"] * 3


async def test_a_gateway_without_keys_leaves_the_batches_of_keys_to_others(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    batches.add("a", key_id=KEY_ID)

    assert await places(1).look() == []
    assert await places(1, keys=SimpleNamespace()).look() == ["a"]


async def test_what_a_lost_batch_has_left_holds_up_no_other(
    batches: OpenBatches, places: Callable[..., Places]
) -> None:
    batches.gone.add(batches.add("a"))
    batches.add("b")

    assert await places(1).look() == ["b"]


# Records


async def test_a_short_page_reads_few_records() -> None:
    members = [f"{number:04}" for number in range(5000)]
    read: list[str] = []

    async def execute(*command: Any) -> list[bytes]:
        begin = members.index(command[2].removeprefix("(")) + 1 if command[2] != "-" else 0
        return [member.encode() for member in members[begin:][: command[-1]]]

    async def record(member: str) -> str:
        read.append(member)
        return member

    page = await read_page(
        cast("Any", SimpleNamespace(execute=execute)), "key", record, after=None, limit=2, newest_first=False
    )

    assert (page.records, page.more, len(read)) == (members[:2], True, 3)
    found = await read_page(
        cast("Any", SimpleNamespace(execute=execute)),
        *("key", record),
        after=None,
        limit=5000,
        newest_first=False,
        wanted=lambda member: member > "4990",
    )
    assert (found.records, found.more) == (members[4991:], False)


async def test_a_batch_runs_only_once_it_is_listed() -> None:
    commands: list[tuple[Any, ...]] = []

    async def execute(*command: Any) -> None:
        commands.append(command)

    records = BatchRecords(cast("Any", SimpleNamespace(execute=execute)))
    batch = order()
    await records.create(batch, ttl_s=1)

    assert {command[1] for command in commands[:2]} == {names.batch_key(batch.id)}
    assert commands[2][1] == names.tenant_batches_key(batch.tenant)
    assert commands[-1] == ("ZADD", names.BATCHES_KEY, batch.deadline_ms, batch.id)
