"""Encrypted connections with certificates on both sides, and credentials that come from files and change."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus, urlencode

import pytest
import redis.asyncio as aioredis
import trustme
from tests.integration.certificates import Certificates, write_certificates
from tests.patience import PATIENCE_S

from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.native import unavailable_reason
from inferfleet.local.services.rabbitmq_process import (
    PASSWORD,
    USER,
    RabbitMQProcess,
    port_mapper_binary,
    server_binary,
)
from inferfleet.local.services.reaper import Reaper
from inferfleet.local.services.redis_process import RedisProcess, redis_binary
from inferfleet.producer import Fleet
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.settings import ProducerSettings
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.redis.connection import open_redis

pytestmark = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"native services: {unavailable_reason()}"
)


@dataclass(frozen=True)
class Secured:
    """Both services with TLS only for those who show a certificate of the CA."""

    amqp_port: int
    redis_port: int
    files: Certificates

    @property
    def amqp_url(self) -> str:
        return f"amqps://{USER}:{PASSWORD}@localhost:{self.amqp_port}/?{self.files.query}"

    @property
    def redis_url(self) -> str:
        files = {
            "ssl_ca_certs": self.files.ca,
            "ssl_certfile": self.files.client,
            "ssl_keyfile": self.files.client_key,
        }
        return f"rediss://localhost:{self.redis_port}/0?{urlencode(files)}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    files = write_certificates(folder)
    amqp_port, redis_port = free_port(), free_port()
    binaries = server_binary(), port_mapper_binary(), redis_binary()
    assert all(binaries)
    with ExitStack() as stack:
        reaper = stack.enter_context(Reaper())
        broker = RabbitMQProcess(
            server=str(binaries[0]),
            port_mapper=str(binaries[1]),
            folder=folder / "rabbitmq",
            reaper=reaper,
            configuration=(
                f"listeners.ssl.1 = 127.0.0.1:{amqp_port}",
                f"ssl_options.cacertfile = {files.ca}",
                f"ssl_options.certfile = {files.server}",
                f"ssl_options.keyfile = {files.server_key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = true",
            ),
        )
        stack.callback(broker.close)
        store = RedisProcess(
            server=str(binaries[2]),
            folder=folder / "redis",
            reaper=reaper,
            configuration={
                "tls-port": str(redis_port),
                "tls-ca-cert-file": str(files.ca),
                "tls-cert-file": str(files.server),
                "tls-key-file": str(files.server_key),
                "tls-auth-clients": "yes",
            },
        )
        stack.callback(store.close)
        store.start()
        broker.start()
        yield Secured(amqp_port, redis_port, files)


async def test_a_client_with_a_certificate_submits_over_tls(secured: Secured) -> None:
    settings = ProducerSettings(amqp_url=secured.amqp_url, redis_url=secured.redis_url)
    async with Fleet.connect(settings) as fleet:
        await fleet.declare_pool("tls")
        job = await fleet.submit("hello", pool="tls")
        assert (await fleet.get(job)).state == "queued"


async def test_a_closed_connection_with_tls_does_not_flow_and_can_be_aborted(secured: Secured) -> None:
    async with open_amqp(secured.amqp_url, timeout_s=PATIENCE_S, name="test") as connection:
        assert connection.stream.flows
        await connection.close()
        assert not connection.stream.flows
        connection.stream.abort()


async def test_a_client_without_a_certificate_is_refused(secured: Secured) -> None:
    url = f"amqps://{USER}:{PASSWORD}@localhost:{secured.amqp_port}/?cafile={secured.files.ca}"
    with pytest.raises(ServiceUnreachableError):
        async with open_amqp(url, timeout_s=PATIENCE_S, name="test"):
            pass
    url = f"rediss://localhost:{secured.redis_port}/0?ssl_ca_certs={secured.files.ca}"
    with pytest.raises(ServiceUnreachableError):
        async with open_redis(url):
            pass


async def test_a_server_of_an_unknown_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with pytest.raises(ServiceUnreachableError, match="certificate verify failed") as raised:
        async with open_amqp(
            f"amqps://{USER}:{PASSWORD}@localhost:{secured.amqp_port}/?cafile={other}",
            timeout_s=PATIENCE_S,
            name="test",
        ):
            pass
    assert PASSWORD + "@" not in str(raised.value)
    assert isinstance(raised.value.__cause__, ssl.SSLError | OSError)
    with pytest.raises(ServiceUnreachableError, match="certificate verify failed"):
        async with open_redis(
            secured.redis_url.replace(quote_plus(str(secured.files.ca)), quote_plus(str(other)))
        ):
            pass


@pytest.mark.parametrize("hosts", ["localhost:{}", "localhost:{},127.0.0.1:{}"])
async def test_a_certificate_that_cannot_be_used_is_named(
    secured: Secured, tmp_path: Path, hosts: str
) -> None:
    empty = tmp_path / "ca.crt"
    empty.touch()
    address = f"amqps://{USER}:{PASSWORD}@{hosts.format(secured.amqp_port, secured.amqp_port)}/"
    for query in (
        f"cafile={tmp_path}/missing.crt",
        f"cafile={empty}",
        f"cafile={secured.files.ca}&certfile={secured.files.ca}",
    ):
        with pytest.raises(ServiceUnreachableError, match=f"certificates that .*{query.split('=')[-1]}"):
            async with open_amqp(f"{address}?{query}", timeout_s=PATIENCE_S, name="test"):
                pass


async def test_urls_are_read_from_files(secured: Secured, tmp_path: Path) -> None:
    amqp, redis = tmp_path / "amqp-url", tmp_path / "redis-url"
    amqp.write_text(secured.amqp_url + "\n")
    redis.write_text(secured.redis_url + "\n")
    settings = ProducerSettings(amqp_url=amqp.as_uri(), redis_url=redis.as_uri())
    async with Fleet.connect(settings) as fleet:
        await fleet.declare_pool("files")
        assert await fleet.submit("hello", pool="files")


@pytest.mark.parametrize(
    "form", ["redis://worker:{}@127.0.0.1:{}/0", "redis://127.0.0.1:{1}/0?username=worker&password={0}"]
)
async def test_a_rotated_redis_password_is_used_by_the_next_connection(tmp_path: Path, form: str) -> None:
    server = redis_binary()
    assert server is not None
    with Reaper() as reaper:
        store = RedisProcess(server=server, folder=tmp_path / "redis", reaper=reaper)
        store.start()
        file = tmp_path / "redis-url"
        file.write_text(form.format("first", store.port))
        async with aioredis.Redis.from_url(store.url) as admin:
            await admin.execute_command("ACL", "SETUSER", "worker", "on", ">first", "~*", "&*", "+@all")
            async with open_redis(file.as_uri()) as client:
                assert isinstance(client, aioredis.Redis)
                await client.set("key", "before")
                await admin.execute_command("ACL", "SETUSER", "worker", "resetpass", ">second")
                file.write_text(form.format("second", store.port))
                await admin.execute_command("CLIENT", "KILL", "USER", "worker")
                with pytest.raises(aioredis.ConnectionError):
                    await client.get("key")
                assert await client.get("key") == b"before"
        store.close()


@pytest.mark.parametrize("content", [None, "\n"])
async def test_a_missing_or_empty_file_is_named(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "redis-url"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match="redis-url"):
        async with open_redis(file.as_uri()):
            pass
