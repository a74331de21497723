"""Files and batches in a bucket, through s3fs and the protocol of S3, which the server of moto speaks."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from fsspec import get_filesystem_class
from openai import NotFoundError
from tests.integration.conftest import PATIENCE_S, StartGateway, StartWorker, eventually
from tests.integration.files_and_batches.conftest import (
    begin,
    client_of,
    expected,
    request,
    texts_of,
    until,
)

from inferfleet.gateway.batches.storage import BLOCK_BYTES, Storage, StorageError
from inferfleet.local.services.free_port import free_port
from inferfleet.schemas.errors import ConfigurationError

BUCKET = "inferfleet"


@pytest.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty bucket."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    names = {"AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**names, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "moto.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)),
            env=dict(os.environ),
            stdout=log,
            stderr=log,
        )
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as http:

        async def made() -> bool:
            assert process.returncode is None, (tmp_path / "moto.log").read_text()
            with suppress(httpx2.TransportError):
                return (await http.put(f"{url}/{BUCKET}")).status_code == 200
            return False

        await eventually(made)
    # It keeps connections by their arguments, which are the same for each server.
    get_filesystem_class("s3").clear_instance_cache()
    yield f"s3://{BUCKET}"
    process.kill()
    await process.wait()


@pytest.fixture
def storage(bucket: str) -> Iterator[Storage]:
    storage = Storage(f"{bucket}/some/prefix")
    yield storage
    storage.close()


def write(storage: Storage, name: str, content: bytes) -> None:
    with storage.writing(name) as file:
        storage.write(name, file, content)


async def test_a_bucket_keeps_what_is_written_and_only_that(
    storage: Storage, bucket: str, tmp_path: Path
) -> None:
    # Several parts of an upload, the last one short.
    long = b"0123456789abcde\n" * (BLOCK_BYTES // 16) * 2 + b"end"

    def use() -> None:
        storage.check()
        assert storage.names("a") == []
        write(storage, "a/b", long)
        write(storage, "a/c", b"three")
        assert b"".join(storage.read("a/b")) == long
        assert list(storage.lines("a/b")) == long.splitlines(keepends=True)
        assert storage.names("a") == ["a/b", "a/c"]
        assert storage.at_hand("a/b", tmp_path).read_bytes() == long
        # The second finds the target there.
        storage.copy("a/b", "d/e")
        storage.copy("a/c", "d/e")
        assert b"".join(storage.read("d/e")) == long
        with suppress(RuntimeError), storage.writing("d/f") as file:
            storage.write("d/f", file, long)
            raise RuntimeError
        assert storage.names("d") == ["d/e"]
        for call in (lambda: next(storage.read("x")), lambda: storage.copy("x", "y")):
            with pytest.raises(FileNotFoundError):
                call()
        storage.remove("a/b")
        assert storage.names("a") == ["a/c"]
        for _ in range(2):
            storage.remove("a")
        assert storage.names("a") == []
        with pytest.raises(ConfigurationError, match="there is no another"):
            Storage("s3://another/prefix").check()

    await asyncio.to_thread(use)


async def as_role(bucket: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as a role that has rights on a prefix only. From here on moto enforces rights."""
    resource = f"arn:aws:s3:::{bucket.removeprefix('s3://')}"
    rights: list[dict[str, object]] = [
        {
            "Action": "s3:ListBucket",
            "Resource": resource,
            "Condition": {"StringLike": {"s3:prefix": f"{prefix}/*"}},
        },
        {"Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], "Resource": f"{resource}/{prefix}/*"},
    ]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **right} for right in rights]}
    url = os.environ["AWS_ENDPOINT_URL_S3"]
    of_iam = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20261126/us-east-1/iam/aws4_request"}
    made = ""
    async with httpx2.AsyncClient(headers=of_iam, timeout=PATIENCE_S) as http:
        for asked in (
            {"Action": "CreateUser"},
            {"Action": "PutUserPolicy", "PolicyName": "prefix", "PolicyDocument": json.dumps(policy)},
            {"Action": "CreateAccessKey"},
        ):
            answer = await http.post(url, data={"Version": "2010-05-08", "UserName": "gateway", **asked})
            assert answer.status_code == 200, answer.text
            made = answer.text
        enforced = await http.post(f"{url}/moto-api/reset-auth", content="0")
        assert enforced.status_code == 200, enforced.text
    for variable, member in (
        ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
    ):
        monkeypatch.setenv(variable, made.partition(f"<{member}>")[2].partition("<")[0])
    get_filesystem_class("s3").clear_instance_cache()


async def test_rights_on_the_prefix_are_enough(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await as_role(bucket, "some/prefix", monkeypatch)

    def use() -> None:
        storage = Storage(f"{bucket}/some/prefix")
        storage.check()
        write(storage, "a/b", b"three")
        assert storage.names("a") == ["a/b"]
        storage.close()
        with pytest.raises(StorageError):
            write(Storage(f"{bucket}/other"), "a", b"three")

    await asyncio.to_thread(use)


async def test_a_batch_runs_on_a_gateway_whose_files_are_in_a_bucket(
    bucket: str, start_gateway: StartGateway, start_worker: StartWorker
) -> None:
    gateway = await start_gateway(files_url=f"{bucket}/files", state_check_interval_s=0.2)
    await start_worker()
    names = [f"request {number}" for number in range(20)]
    async with client_of(gateway) as client:
        batch = await begin(client, "".join(map(request, names)))
        done = await until(client, batch, "completed", "failed")
        assert await texts_of(client, done) == {name: expected(name) for name in names}
        for file_id in (batch.input_file_id, done.output_file_id):
            assert file_id is not None
            await client.files.delete(file_id)
            with pytest.raises(NotFoundError):
                await client.files.content(file_id)
