"""Requests to endpoints that tenants have named reach no address that they must not reach."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from tests.integration.receiver import endless, never, receiving, status

from inferfleet.gateway.webhooks.sending import Network, Sender, may_reach

PUBLIC = "93.184.215.14"
LOOPBACK: Sequence[Network] = [ip_network("127.0.0.0/8")]
HEADERS = {"content-type": "application/json"}


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
            assert await sender.problem(url) is not None
            sent = await sender.send(url, headers=HEADERS, body=b"{}")
            assert (sent.status, sent.accepted) == (None, False)
        assert receiver.received == []


async def test_a_name_that_resolves_to_another_address_than_when_it_was_checked_leads_nowhere() -> None:
    async with receiving() as receiver, sending(PUBLIC, "127.0.0.1") as sender:
        url = receiver.url.replace("http://127.0.0.1", "https://rebound.example")
        assert await sender.problem(url) is None

        sent = await sender.send(url, headers=HEADERS, body=b"{}")

        assert sent.failure == "its address must not be reached"
        assert receiver.received == []


async def test_a_request_goes_to_the_one_address_of_a_name_that_may_be_reached() -> None:
    names = Names("10.255.255.1 127.0.0.1")
    async with (
        receiving() as receiver,
        Sender.opened(allowed=LOOPBACK, timeout_s=5, lookup=names) as sender,
    ):
        url = receiver.url.replace("127.0.0.1", "several.example")
        sent = await sender.send(url, headers=HEADERS, body=b"{}")
        assert sent.accepted
        assert names.asked == 1
        assert receiver.received[0].headers["host"].startswith("several.example")
        # A name is resolved again for each request, and no connection is kept.
        await sender.send(url, headers=HEADERS, body=b"{}")
        assert names.asked == 2


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    async with receiving() as receiver, receiving() as elsewhere, sending(allowed=LOOPBACK) as sender:
        receiver.answer = status(code, f"location: {elsewhere.url}")
        sent = await sender.send(receiver.url, headers=HEADERS, body=b"{}")
        assert (sent.status, sent.accepted) == (code, False)
        assert elsewhere.received == []


async def test_an_endpoint_that_does_not_answer_is_given_up_in_time() -> None:
    async with receiving() as receiver, sending(allowed=LOOPBACK, timeout_s=0.2) as sender:
        receiver.answer = never
        assert (await sender.send(receiver.url, headers=HEADERS, body=b"{}")).failure == "it takes too long"


async def test_a_body_without_end_is_not_read() -> None:
    async with receiving() as receiver, sending(allowed=LOOPBACK) as sender:
        receiver.answer = endless
        assert (await sender.send(receiver.url, headers=HEADERS, body=b"{}")).accepted


async def test_headers_without_end_are_refused() -> None:
    async def headers(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: " + b"y" * 100_000)
            await writer.drain()

    async with receiving() as receiver, sending(allowed=LOOPBACK) as sender:
        receiver.answer = headers
        assert (await sender.send(receiver.url, headers=HEADERS, body=b"{}")).failure == (
            "it gives no valid answer"
        )


async def test_what_is_not_http_is_no_answer() -> None:
    async def noise(writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\xff nonsense\r\n\r\n")

    async with receiving() as receiver, sending(allowed=LOOPBACK) as sender:
        receiver.answer = noise
        sent = await sender.send(receiver.url, headers=HEADERS, body=b"{}")
        assert sent.failure == "it gives no valid answer"
        https = receiver.url.replace("http", "https", 1)
        assert not (await sender.send(https, headers=HEADERS, body=b"{}")).accepted


async def test_a_certificate_that_nobody_vouches_for_is_refused(own_certificate: ssl.SSLContext) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=own_certificate)
    async with server, sending(allowed=LOOPBACK) as sender:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        sent = await sender.send(url, headers=HEADERS, body=b"{}")
    assert sent.failure == "its certificate or TLS is not valid"


@pytest.fixture
def own_certificate() -> ssl.SSLContext:
    trustme = pytest.importorskip("trustme")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
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
        assert await sender.problem(url) is not None


async def test_a_url_that_leads_to_a_public_address_is_taken() -> None:
    async with sending(PUBLIC) as sender:
        assert await sender.problem("https://example.com:8443/hook?a=b") is None
        assert await sender.problem("http://example.com/hook") is not None
