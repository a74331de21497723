"""Requests to endpoints that tenants have named reach no address that they must not reach."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.integration.receiver import endless, never, receiving, status

from inferfleet.gateway.webhooks.sending import LOOKUPS, MAX_INTERIM, Network, Sender, may_reach

PUBLIC = "93.184.215.14"
LOOPBACK: Sequence[Network] = [ip_network("127.0.0.0/8")]
REQUEST: dict[str, Any] = {"headers": {"content-type": "application/json"}, "body": b"{}", "tenant": "t"}


class Names:
    """A resolver that gives one answer after the other, and then the last one again."""

    def __init__(self, *answers: str) -> None:
        self._answers = [answer.split() for answer in answers]
        self.asked = 0

    def __call__(self, host: str, port: int, family: int) -> list[tuple[int, str]]:
        addresses = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in addresses]


@asynccontextmanager
async def sending(
    *names: str, allowed: Sequence[Network] = (), timeout_s: float = 5
) -> AsyncIterator[Sender]:
    lookup = Names(*names) if names else None
    async with Sender.opened(allowed=allowed, timeout_s=timeout_s, lookup=lookup) as sender:
        yield sender


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("192.0.0.192", "192.0.0.8", "192.88.99.1", "168.63.129.16", "3fff::1", "64:ff9b:1::1", "5f00::1"),
        *("64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2002:5db8:d70e::1", "2001:0:7f00:1::1"),
    ],
)
def test_an_address_that_is_not_public_must_not_be_reached(address: str) -> None:
    assert not may_reach(address, (), public=True)


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", f"::ffff:{PUBLIC}"])
def test_a_public_address_is_reached_by_https_and_not_by_http(address: str) -> None:
    assert may_reach(address, (), public=True)
    assert not may_reach(address, LOOPBACK, public=False)


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
def test_an_allowed_network_is_reached_however_an_address_in_it_is_written(address: str) -> None:
    assert may_reach(address, LOOPBACK, public=False)
    assert not may_reach("10.0.0.1", LOOPBACK, public=True)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_a_request_to_this_machine_is_not_sent_however_the_host_is_written(host: str) -> None:
    async with receiving() as receiver, sending() as sender:
        port = receiver.url.split(":")[-1].removesuffix("/hook")
        for scheme in ("http", "https"):
            url = f"{scheme}://{host}:{port}/"
            assert await sender.problem(url, tenant="t") is not None
            sent = await sender.send(url, **REQUEST)
            assert (sent.status, sent.accepted) == (None, False)
        assert receiver.received == []


async def test_a_name_that_resolves_to_another_address_than_when_it_was_checked_leads_nowhere() -> None:
    async with receiving() as receiver, sending(PUBLIC, "127.0.0.1") as sender:
        url = receiver.url.replace("http://127.0.0.1", "https://rebound.example")
        assert await sender.problem(url, tenant="t") is None

        sent = await sender.send(url, **REQUEST)

        assert sent.failure == "it has no address that may be reached"
        assert receiver.received == []


async def test_a_failure_does_not_tell_whether_a_name_in_the_operators_network_exists() -> None:
    def none(host: str, port: int, family: int) -> list[tuple[int, str]]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    url = "https://redis.internal/"
    async with sending("10.0.0.1") as sender, Sender.opened(allowed=(), timeout_s=5, lookup=none) as other:
        assert await sender.send(url, **REQUEST) == await other.send(url, **REQUEST)
        assert await sender.problem(url, tenant="t") == await other.problem(url, tenant="t")


async def test_a_request_goes_to_the_one_address_of_a_name_that_may_be_reached() -> None:
    names = Names("10.255.255.1 127.0.0.1")
    async with (
        receiving() as receiver,
        Sender.opened(allowed=LOOPBACK, timeout_s=5, lookup=names) as sender,
    ):
        url = receiver.url.replace("127.0.0.1", "several.example")
        sent = await sender.send(url, **REQUEST)
        assert sent.accepted
        assert names.asked == 1
        assert receiver.received[0].headers["host"].startswith("several.example")
        # A name is resolved again for each request, and no connection is kept.
        await sender.send(url, **REQUEST)
        assert names.asked == 2


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    async with receiving() as receiver, receiving() as elsewhere, sending(allowed=LOOPBACK) as sender:
        receiver.answer = status(code, f"location: {elsewhere.url}")
        sent = await sender.send(receiver.url, **REQUEST)
        assert (sent.status, sent.accepted) == (code, False)
        assert elsewhere.received == []


async def test_an_endpoint_that_does_not_answer_is_given_up_in_time() -> None:
    async with receiving() as receiver, sending(allowed=LOOPBACK, timeout_s=0.2) as sender:
        receiver.answer = never
        assert (await sender.send(receiver.url, **REQUEST)).failure == "it takes too long"


async def test_a_body_without_end_is_not_read() -> None:
    async with receiving() as receiver, sending(allowed=LOOPBACK) as sender:
        receiver.answer = endless
        assert (await sender.send(receiver.url, **REQUEST)).accepted


async def test_headers_without_end_are_refused() -> None:
    async def headers(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: " + b"y" * 100_000)
            await writer.drain()

    async with receiving() as receiver, sending(allowed=LOOPBACK) as sender:
        receiver.answer = headers
        assert (await sender.send(receiver.url, **REQUEST)).failure == ("it gives no valid answer")


async def test_interim_responses_without_end_are_refused_and_hold_up_nothing() -> None:
    many = b"HTTP/1.1 100 x\r\n\r\n" * 10_000

    async def interim(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(many)
            await writer.drain()

    async with receiving() as receiver, sending(allowed=LOOPBACK, timeout_s=20) as sender:
        receiver.answer = interim
        sent = await sender.send(receiver.url, **REQUEST)
        assert sent.failure == "it gives no valid answer"


async def test_some_interim_responses_may_come_first() -> None:
    async def interim(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * MAX_INTERIM)
        await status(204)(writer)

    async with receiving() as receiver, sending(allowed=LOOPBACK) as sender:
        receiver.answer = interim
        assert (await sender.send(receiver.url, **REQUEST)).accepted


async def test_what_is_not_http_is_no_answer() -> None:
    async def noise(writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\xff nonsense\r\n\r\n")

    async with receiving() as receiver, sending(allowed=LOOPBACK) as sender:
        receiver.answer = noise
        sent = await sender.send(receiver.url, **REQUEST)
        assert sent.failure == "it gives no valid answer"
        https = receiver.url.replace("http", "https", 1)
        assert not (await sender.send(https, **REQUEST)).accepted


async def test_a_certificate_that_nobody_vouches_for_is_refused(own_certificate: ssl.SSLContext) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=own_certificate)
    async with server, sending(allowed=LOOPBACK) as sender:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        sent = await sender.send(url, **REQUEST)
    assert sent.failure == "its certificate or TLS is not valid"


async def test_no_socket_is_kept_for_an_endpoint_that_does_not_end_tls(
    trusted_certificate: ssl.SSLContext,
) -> None:
    def serve_one() -> bool:
        """Answer a request, and return whether the peer closes the connection soon."""
        accepted, _ = listening.accept()
        with trusted_certificate.wrap_socket(accepted, server_side=True) as peer:
            peer.recv(65_536)
            peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            hung_up = select.poll()
            hung_up.register(peer, select.POLLRDHUP)
            # aiohttp waits for 30 s.
            return bool(hung_up.poll(20_000))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        served = asyncio.create_task(asyncio.to_thread(serve_one))
        async with sending(allowed=LOOPBACK) as sender:
            sent = await sender.send(f"https://127.0.0.1:{listening.getsockname()[1]}/", **REQUEST)
            assert sent.accepted
            assert await served


class Slow:
    """A resolver that gives no answer for some names until it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked = 0

    def __call__(self, host: str, port: int, family: int) -> list[tuple[int, str]]:
        self.asked += 1
        if host.startswith("slow"):
            self.may_answer.wait(60)
        return [(socket.AF_INET, "127.0.0.1")]


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.may_answer.set()


async def test_slow_names_of_one_tenant_hold_up_no_other(slow: Slow) -> None:
    async with (
        receiving() as receiver,
        Sender.opened(allowed=LOOPBACK, timeout_s=20, lookup=slow) as sender,
        asyncio.TaskGroup() as tasks,
    ):
        urls = [f"https://slow{number}.example/" for number in range(LOOKUPS)]
        asked = [tasks.create_task(sender.problem(url, tenant="another")) for url in urls]
        await asyncio.sleep(0)

        sent = await sender.send(receiver.url.replace("127.0.0.1", "good.example"), **REQUEST)

        assert sent.accepted
        slow.may_answer.set()
        assert [await each for each in asked] == [None] * LOOKUPS


async def test_a_name_is_looked_up_once_at_a_time_even_if_nobody_waits_any_more(slow: Slow) -> None:
    async with receiving() as receiver, Sender.opened(allowed=LOOPBACK, timeout_s=0.1, lookup=slow) as sender:
        for _ in range(3):
            sent = await sender.send(receiver.url.replace("127.0.0.1", "slow.example"), **REQUEST)
            assert sent.failure == "it takes too long"
        assert slow.asked == 1
        slow.may_answer.set()


@pytest.fixture
def own_certificate() -> ssl.SSLContext:
    trustme = pytest.importorskip("trustme")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusted_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ssl.SSLContext:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setattr(
        aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=tmp_path / "ca.pem")
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "https://", "https:///hook", "ftp://example.com/", "file:///etc/passwd", "//example.com/"),
        *("https://user@example.com/", "https://:pw@example.com/", "https://example.com/#part"),
        *("https://example.com:0/", "https://example.com:99999/", "https://[::1/", "https://exa mple.com/"),
        *("https://example.com/\r\nx: y", "https://exämple.com/", "https://example.com/" + "x" * 2048),
        "https://nowhere.invalid/",
    ],
)
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    async with sending() as sender:
        assert await sender.problem(url, tenant="t") is not None


async def test_a_url_that_leads_to_a_public_address_is_taken() -> None:
    async with sending(PUBLIC) as sender:
        assert await sender.problem("https://example.com:8443/hook?a=b", tenant="t") is None
        assert await sender.problem("http://example.com/hook", tenant="t") is not None
