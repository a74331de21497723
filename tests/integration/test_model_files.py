"""``inferfleet model list`` and ``model verify``: what is on a volume, who has it, whether it is sound."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.integration.conftest import INSTANT, RunCommand, StartWorker, eventually
from tests.model_folders import FILES, SHARDS, hub_snapshot, plain_folder

from inferfleet.producer import Fleet
from inferfleet.schemas.heartbeat import WorkerPhase

OLD, NEW = "1" * 40, "2" * 40
SIZE = sum(map(len, FILES.values()))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Two revisions of a model of the hub, of which one is a branch, and a folder beside the hub's cache."""
    hub_snapshot(tmp_path, "acme/chat", OLD)
    hub_snapshot(tmp_path, "acme/chat", NEW, "main", "v2")
    plain_folder(tmp_path / "own" / "chat")
    return tmp_path


async def test_every_model_is_listed_with_the_workers_that_have_its_weights(
    fleet: Fleet, start_worker: StartWorker, inferfleet: RunCommand, volume: Path, pool: str
) -> None:
    # The simulated engine's weights are a number, and this one looks like the commit.
    await start_worker(worker_id=f"{pool}-w", engine_args={**INSTANT, "weights": int(NEW)})

    async def ready() -> bool:
        return [it.phase for it in await fleet.workers() if it.pool == pool] == [WorkerPhase.READY]

    await eventually(ready)
    identity = next(it.model_identity for it in await fleet.workers() if it.pool == pool)
    ended = await inferfleet("model", "list", "--cache", str(volume), "--json")
    assert (ended.code, ended.err) == (0, "")
    old, new, own = json.loads(ended.out)
    user = {"worker_id": f"{pool}-w", "model": "simulated", "model_identity": identity}
    assert (old["model"], old["revision"], old["refs"], old["workers"]) == ("acme/chat", OLD, [], [])
    assert (new["model"], new["revision"], new["refs"], new["workers"]) == (
        "acme/chat",
        NEW,
        ["main", "v2"],
        [user],
    )
    assert (own["model"], own["revision"], own["workers"]) == (str(volume / "own" / "chat"), "", [])
    assert [it["bytes"] for it in (old, new, own)] == [SIZE] * 3

    for_people = (await inferfleet("model", "list", environment={"HF_HOME": str(volume)})).out.splitlines()
    assert for_people[1].startswith(f"acme/chat  {NEW} (main, v2)  {SIZE} B  last read 2")
    assert for_people[1].endswith(f"used by {pool}-w as simulated ({identity})")
    assert for_people[2].startswith(f"{volume}/own/chat  folder  ")
    assert for_people[2].endswith("  no worker")


async def test_looking_at_a_model_is_not_using_it(inferfleet: RunCommand, volume: Path) -> None:
    files = [file for file in volume.rglob("*") if file.is_file()]
    for file in files:
        os.utime(file, (1_000_000_000, 1_000_000_000))
    assert (await inferfleet("model", "list", "--cache", str(volume))).code == 0
    assert (await inferfleet("model", "verify", str(volume / "own" / "chat"))).code == 0
    ended = await inferfleet("model", "list", "--cache", str(volume), "--json")
    assert {it["last_read"] for it in json.loads(ended.out)} == {"2001-09-09T01:46:40+00:00"}


async def test_without_redis_the_models_are_listed_and_the_workers_unknown(
    inferfleet: RunCommand, volume: Path
) -> None:
    nobody = {"INFERFLEET_REDIS_URL": "redis://127.0.0.1:1/0"}
    ended = await inferfleet("model", "list", "--cache", str(volume), environment=nobody)
    assert ended.code == 0
    assert [row.rpartition("  ")[2] for row in ended.out.splitlines()] == ["workers unknown"] * 3
    assert ended.err.startswith("inferfleet: the workers are unknown: Redis at redis://127.0.0.1:1/0")


async def test_verify_says_what_it_checked_and_exits_with_1_for_damage(
    inferfleet: RunCommand, volume: Path
) -> None:
    verify = ("model", "verify", "acme/chat", "--cache", str(volume))
    sound = await inferfleet(*verify)
    assert (sound.code, sound.err) == (0, "")
    assert sound.out == (
        f"acme/chat@{NEW}  {len(FILES)} files match their checksums, 0 their headers or form; "
        "0 cannot be checked\n"
    )
    shard = volume / "hub/models--acme--chat/snapshots" / OLD / SHARDS[0]
    shard.resolve().write_bytes(b"damaged")
    for revision in ("v2", OLD):
        ended = await inferfleet(*verify, "--revision", revision, "--json")
        # Both have the same blob.
        (problem,) = json.loads(ended.out)["problems"]
        assert ended.code == 1
        assert problem["file"].endswith(SHARDS[0])
    assert ended.err == f"inferfleet: acme/chat@{OLD} is not sound (problems: 1). Download or copy it again\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("acme/other",), "'acme/other' is neither a folder nor a model below "),
        (("acme/chat", "--revision", "v3"), f"name one of these with --revision: {OLD}, {NEW} main v2"),
        ((".", "--revision", "v2"), "--revision is for a name on the hub, but '.' is a folder"),
        ((" ",), "is empty"),
        (("acme/chat", "--cache", "/nowhere"), "/nowhere cannot be read: No such file or directory"),
    ],
    ids=["unknown model", "unknown revision", "revision of a folder", "empty", "no such cache"],
)
async def test_invalid_usage_is_refused_and_says_what_there_is(
    inferfleet: RunCommand, volume: Path, arguments: tuple[str, ...], says: str
) -> None:
    ended = await inferfleet("model", "verify", *arguments, environment={"HF_HOME": str(volume)})
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
