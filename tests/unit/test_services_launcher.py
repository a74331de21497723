"""Which services are taken, what is said about it, and that they are closed again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
import redis
from tests.patience import PATIENCE_S

from inferfleet.local.services import Services, ServicesChoice, launcher, rabbitmq_process, running_services
from inferfleet.local.services.choice import ServicesOptions
from inferfleet.local.services.launcher import Source
from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError

AMQP_URL = "amqp://user:secret@broker:5672/"
REDIS_URL = "redis://:secret@store:6379/0"


class Stub:
    """A kind of services that only says that it runs."""

    def __init__(
        self, kind: ServicesChoice, *, unavailable_reason: str | None = None, error: str | None = None
    ) -> None:
        self._kind = kind
        self._obstacle = unavailable_reason
        self._error = error
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.open = False

    @property
    def source(self) -> Source:
        return Source(lambda: self._obstacle, self._run)

    @contextmanager
    def _run(self, _: ServicesOptions) -> Generator[Services]:
        self.begun.set()
        assert self.go_on.wait(10)
        if self._error is not None:
            raise ServiceUnreachableError(self._error)
        self.open = True
        yield Services(
            kind=self._kind, amqp_url=AMQP_URL, redis_url=REDIS_URL, description=f"stub of {self._kind}"
        )
        self.open = False


def use(monkeypatch: pytest.MonkeyPatch, **stubs: Stub) -> None:
    monkeypatch.setattr(launcher, "source_of", lambda kind: stubs[kind.value].source)


def test_given_urls_are_taken_before_anything_else_and_shown_without_their_passwords() -> None:
    with running_services(amqp_url=AMQP_URL, redis_url=REDIS_URL) as services:
        assert (services.kind, services.amqp_url, services.redis_url) == ("urls", AMQP_URL, REDIS_URL)
        assert "secret" not in services.announcement
        assert "broker:5672" in services.announcement


@pytest.mark.parametrize(
    ("urls", "missing"),
    [
        ({"amqp_url": AMQP_URL}, "missing: INFERFLEET_REDIS_URL"),
        ({"redis_url": REDIS_URL}, "missing: INFERFLEET_AMQP_URL"),
    ],
)
def test_one_url_alone_is_an_error_that_names_the_other(urls: dict[str, Any], missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing), running_services(**urls):
        pass


def test_urls_cannot_be_forced_without_urls() -> None:
    with pytest.raises(ConfigurationError, match="give both URLs"), running_services(ServicesChoice.URLS):
        pass


def test_auto_prefers_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, docker=Stub(ServicesChoice.DOCKER))
    with running_services() as services:
        assert services.kind == "docker"


def test_auto_goes_on_to_what_is_possible_here(monkeypatch: pytest.MonkeyPatch) -> None:
    use(
        monkeypatch,
        docker=Stub(ServicesChoice.DOCKER, unavailable_reason="no engine"),
        native=Stub(ServicesChoice.NATIVE),
    )
    with running_services() as services:
        assert services.kind == "native"


def test_auto_says_aloud_that_a_kind_failed_before_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(
        monkeypatch,
        docker=Stub(ServicesChoice.DOCKER, unavailable_reason="no engine"),
        native=Stub(ServicesChoice.NATIVE, error="rabbitmq-server ended with code 1"),
        embedded=Stub(ServicesChoice.EMBEDDED),
    )
    with running_services() as services:
        assert services.kind == "embedded"
    assert "rabbitmq-server ended with code 1" in caplog.text


def test_auto_lists_every_reason_when_nothing_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (ServicesChoice.DOCKER, ServicesChoice.NATIVE, ServicesChoice.EMBEDDED)
    use(monkeypatch, **{kind.value: Stub(kind, unavailable_reason=f"no {kind} today") for kind in kinds})
    with pytest.raises(ConfigurationError) as error, running_services():
        pass
    for kind in kinds:
        assert f"{kind}: no {kind} today" in str(error.value)


def test_a_forced_kind_that_failed_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, native=Stub(ServicesChoice.NATIVE, error="port taken"))
    with pytest.raises(ServiceUnreachableError, match="port taken"), running_services(ServicesChoice.NATIVE):
        pass


def test_native_services_without_the_servers_say_which_are_missing_and_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rabbitmq_process, "_SERVER_WITHOUT_WRAPPER", tmp_path / "none")
    with pytest.raises(ConfigurationError) as error, running_services(ServicesChoice.NATIVE):
        pass
    for words in ("rabbitmq-server", "redis-server", "apt-get install"):
        assert words in str(error.value)


def test_docker_services_without_an_engine_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(ConfigurationError, match="no Docker engine"), running_services(ServicesChoice.DOCKER):
        pass


def test_embedded_services_work_and_say_how_to_get_the_real_ones() -> None:
    with running_services(ServicesChoice.EMBEDDED) as services:
        with redis.Redis.from_url(services.redis_url) as store:
            assert store.ping()
        first, second = services.announcement.splitlines()
        assert first.startswith("services: embedded")
        assert "apt-get install rabbitmq-server redis-server" in second


def test_embedded_services_have_no_management_api() -> None:
    with (
        pytest.raises(ConfigurationError, match="management"),
        running_services(ServicesChoice.EMBEDDED, management=True),
    ):
        pass


async def test_embedded_services_serve_the_event_loop_that_started_them() -> None:
    async with (
        running_services(ServicesChoice.EMBEDDED) as services,
        await aio_pika.connect(services.amqp_url) as connection,
    ):
        assert not connection.is_closed


async def test_closed_embedded_services_leave_no_client_waiting() -> None:
    running = running_services(ServicesChoice.EMBEDDED)
    services = await running.__aenter__()
    store = redis.asyncio.Redis.from_url(services.redis_url, socket_timeout=None)
    blocked: Any = store.xread({"stream": "$"}, block=60_000)
    reading = asyncio.create_task(blocked)
    await asyncio.sleep(0.1)
    async with asyncio.timeout(PATIENCE_S):
        await running.__aexit__(None, None, None)
        with pytest.raises(redis.exceptions.ConnectionError):
            await reading
    await store.aclose()


async def test_services_whose_start_is_cancelled_are_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(ServicesChoice.NATIVE)
    stub.go_on.clear()
    use(monkeypatch, native=stub)
    starting = asyncio.create_task(running_services(ServicesChoice.NATIVE).__aenter__())
    await asyncio.to_thread(stub.begun.wait, 10)
    starting.cancel()
    stub.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not stub.open


def test_an_error_inside_the_block_closes_the_services_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def run(_: ServicesOptions) -> Generator[Services]:
        try:
            yield Services(kind=ServicesChoice.NATIVE, amqp_url="", redis_url="", description="")
        finally:
            closed.append(True)

    closed: list[bool] = []
    monkeypatch.setattr(launcher, "source_of", lambda _: Source(lambda: None, run))
    with pytest.raises(ValueError, match="mine"), running_services(ServicesChoice.NATIVE):
        raise ValueError("mine")
    assert closed == [True]


def test_importing_the_launcher_imports_none_of_the_kinds() -> None:
    code = "import sys, inferfleet.local.services; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"testcontainers", "docker", "fakeredis", "pamqp", "aio_pika", "redis"}
    assert not heavy & set(answer.stdout.split())
