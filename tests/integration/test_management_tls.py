"""RabbitMQ's HTTP API with certificates on both sides, asked with credentials that change."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.integration.certificates import Certificates, write_certificates
from tests.patience import PATIENCE_S
from yarl import URL

from inferfleet.exporter.server import serving
from inferfleet.exporter.settings import ExporterSettings
from inferfleet.local.autoscaler.decision import Reading
from inferfleet.local.autoscaler.measure import open_measurer
from inferfleet.local.autoscaler.triggers import Protocol, RabbitMQTrigger
from inferfleet.local.services import native
from inferfleet.local.services.free_port import free_port
from inferfleet.local.services.rabbitmq_process import RabbitMQProcess, port_mapper_binary, server_binary
from inferfleet.local.services.reaper import Reaper
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.names import job_queue
from inferfleet.wire.rabbitmq.management import ManagementApi

IMAGE = "rabbitmq:4-management"
ADMINISTRATOR = "guest:guest"
POOL = "secured"
NOWHERE = "redis://127.0.0.1:1/0"

TRIGGER = RabbitMQTrigger(name="queue", queue=job_queue(POOL), protocol=Protocol.HTTP, target=1)


@dataclass(frozen=True)
class Secured:
    """A RabbitMQ whose HTTP API takes only those who show a certificate of the CA. It has one empty queue."""

    port: int
    files: Certificates

    def url(self, credentials: str = ADMINISTRATOR) -> str:
        """As KEDA has it, so with the virtual host at its end."""
        return f"https://{credentials}@localhost:{self.port}/"

    def with_certificates(self, credentials: str = ADMINISTRATOR) -> str:
        return f"{self.url(credentials)}?{self.files.query}"

    async def put(self, path: str, content: dict[str, Any]) -> None:
        """Change something, over the same API."""
        context = ssl.create_default_context(cafile=self.files.ca)
        context.load_cert_chain(self.files.client, self.files.client_key)
        url = URL(f"{self.url()}api/{path}", encoded=True)
        async with aiohttp.ClientSession() as http, http.put(url, json=content, ssl=context) as answer:
            assert answer.status in {201, 204}, await answer.text()

    async def give_password(self, user: str, password: str) -> None:
        await self.put(f"users/{user}", {"password": password, "tags": "monitoring"})
        await self.put(f"permissions/%2F/{user}", {"configure": "", "write": "", "read": ".*"})


def configuration(files: Certificates, *, port: int) -> list[str]:
    return [
        f"management.ssl.port = {port}",
        f"management.ssl.cacertfile = {files.ca}",
        f"management.ssl.certfile = {files.server}",
        f"management.ssl.keyfile = {files.server_key}",
        "management.ssl.verify = verify_peer",
        "management.ssl.fail_if_no_peer_cert = true",
    ]


@contextmanager
def process(files: Certificates, folder: Path) -> Generator[int]:
    """RabbitMQ's binaries; yields the port."""
    if (reason := native.unavailable_reason()) is not None:
        pytest.skip(f"native services: {reason}")
    server, port_mapper, port = server_binary(), port_mapper_binary(), free_port()
    assert server is not None
    assert port_mapper is not None
    with Reaper() as reaper:
        broker = RabbitMQProcess(
            server=server,
            port_mapper=port_mapper,
            folder=folder / "rabbitmq",
            reaper=reaper,
            management=True,
            configuration=configuration(files, port=port),
        )
        try:
            broker.start()
            yield port
        finally:
            broker.close()


@contextmanager
def container(files: Certificates, folder: Path) -> Generator[int]:
    """RabbitMQ's image; yields the port."""
    if shutil.which("docker") is None or docker("image", "inspect", IMAGE, check=False) is None:
        pytest.skip(f"no Docker engine answers, or the image {IMAGE} is not here")
    for file in folder.iterdir():
        file.chmod(0o644)  # the server is another user there
    inside = replace(
        files, **{name: Path("/tls") / getattr(files, name).name for name in ("ca", "server", "server_key")}
    )
    conf = folder / "20-tls.conf"
    conf.write_text("\n".join([*configuration(inside, port=15671), "loopback_users = none", ""]))
    name = docker(
        *("run", "--detach", "--rm", "--publish", "127.0.0.1::15671"),
        *("--volume", f"{folder}:/tls:ro", "--volume", f"{conf}:/etc/rabbitmq/conf.d/20-tls.conf:ro"),
        IMAGE,
    )
    assert name is not None
    try:
        published = docker("port", name, "15671")
        assert published is not None
        yield int(published.splitlines()[0].rpartition(":")[2])
    finally:
        docker("rm", "--force", "--volumes", name)


def docker(*arguments: str, check: bool = True) -> str | None:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return None if done.returncode else done.stdout.strip()


@pytest.fixture(scope="module", params=[process, container])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("management")
    folder.chmod(0o755)
    files = write_certificates(folder)
    with request.param(files, folder) as port:
        served = Secured(port, files)
        asyncio.run(_declared(served))
        yield served


async def _declared(served: Secured) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            await served.put(f"queues/%2F/{job_queue(POOL)}", {"durable": True})
        except (aiohttp.ClientError, AssertionError):
            # It serves HTTP before its node is up.
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            return


def api(url: str, *, amqp_url: str = "amqp://localhost/") -> ManagementApi:
    return ManagementApi(url, amqp_url=amqp_url, timeout_s=PATIENCE_S)


async def test_a_client_with_a_certificate_reads_a_queue(secured: Secured) -> None:
    assert (await api(secured.with_certificates()).queue(job_queue(POOL))).name == job_queue(POOL)


async def test_the_certificates_of_the_amqp_url_do_when_it_has_none(secured: Secured) -> None:
    amqp_url = f"amqps://localhost/?{secured.files.query}&heartbeat=30"
    assert (await api(secured.url(), amqp_url=amqp_url).queue(job_queue(POOL))).name == job_queue(POOL)


async def test_a_client_without_a_certificate_is_refused(secured: Secured) -> None:
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        await api(f"{secured.url()}?cafile={secured.files.ca}").queue(job_queue(POOL))


async def test_a_server_of_an_unknown_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    other = write_certificates(tmp_path / "other")
    with pytest.raises(ServiceUnreachableError, match="certificate verify failed") as raised:
        await api(f"{secured.url('guest:secret')}?{other.query}").queue(job_queue(POOL))
    assert "secret" not in str(raised.value)


async def test_autoscale_counts_over_tls(secured: Secured, tmp_path: Path) -> None:
    file = tmp_path / "management-url"
    file.write_text(f"{secured.with_certificates()}\n")
    async with open_measurer(
        [TRIGGER], amqp_url="amqp://localhost/", management_url=file.as_uri(), prometheus_url=None
    ) as measurer:
        assert list(await measurer.measure([TRIGGER])) == [Reading(0.0)]


async def test_a_password_in_a_file_may_change_while_the_exporter_runs(
    secured: Secured, tmp_path: Path
) -> None:
    file, amqp_file = tmp_path / "management-url", tmp_path / "amqp-url"
    amqp_file.write_text(f"amqps://localhost/?{secured.files.query}")
    await secured.give_password("watcher", "first")
    file.write_text(secured.url("watcher:first"))
    settings = ExporterSettings(
        amqp_url=amqp_file.as_uri(),
        redis_url=NOWHERE,
        management_url=file.as_uri(),
        http_host="127.0.0.1",
        http_port=0,
        sample_interval_s=0.2,
    )
    async with serving(settings) as port, aiohttp.ClientSession() as http:

        async def until(condition: Callable[[str], bool]) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                        if condition(await answer.text()):
                            return
                    await asyncio.sleep(0.1)

        ready = f'inferfleet_queue_ready{{pool="{POOL}"}} 0.0'

        def gone(text: str) -> bool:
            return ready not in text and 'up{service="rabbitmq"} 0.0' in text

        await until(lambda text: ready in text)
        await secured.give_password("watcher", "second")
        await until(gone)
        file.write_text(secured.url("watcher:second"))
        await until(lambda text: ready in text)
        # A mounted Secret changes by a rename. Should the file be away for once, that is survived too.
        file.unlink()
        await until(gone)
        file.write_text(secured.url("watcher:second"))
        await until(lambda text: ready in text)


async def test_a_wrong_password_is_said_and_not_shown(secured: Secured) -> None:
    with pytest.raises(ServiceUnreachableError, match="tag monitoring") as raised:
        await api(secured.with_certificates("guest:wrong")).queue(job_queue(POOL))
    assert "wrong" not in str(raised.value)


async def test_an_unknown_queue_is_named(secured: Secured) -> None:
    with pytest.raises(ServiceUnreachableError, match=r"404 for /api/queues/%2F/inferfleet\.jobs\.none"):
        await api(secured.with_certificates()).queue(job_queue("none"))


async def test_the_exporter_ends_at_once_when_its_file_is_not_there(tmp_path: Path) -> None:
    missing = (tmp_path / "management-url").as_uri()
    with pytest.raises(ConfigurationError, match="management-url"):
        async with serving(ExporterSettings(redis_url=NOWHERE, management_url=missing, http_port=0)):
            pass
