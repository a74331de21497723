"""What the embedded broker says to clients that do not behave, frame by frame."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader, ProtocolHeader
from pamqp.heartbeat import Heartbeat
from tests.patience import PATIENCE_S

from inferfleet.local.embedded import EmbeddedBroker


class Client:
    """Sends and receives single frames."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._stream = self.socket.makefile("rb")

    def close(self) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, value: frame.FrameTypes, channel: int = 0) -> None:
        self.socket.sendall(frame.marshal(value, channel))

    def receive(self) -> frame.FrameTypes | None:
        """The next frame; ``None`` when the broker has closed."""
        head = self._stream.read(7)
        if not head:
            return None
        (size,) = struct.unpack(">I", head[3:])
        return frame.unmarshal(head + self._stream.read(size + 1))[2]

    def log_in(
        self,
        *,
        response: str = "\0guest\0guest",
        heartbeat: int = 0,
        frame_max: int = 131_072,
        vhost: str = "/",
    ) -> frame.FrameTypes | None:
        self.send(ProtocolHeader())
        assert isinstance(self.receive(), commands.Connection.Start)
        self.send(commands.Connection.StartOk(response=response))
        if not isinstance(tune := self.receive(), commands.Connection.Tune):
            return tune
        self.send(commands.Connection.TuneOk(channel_max=10, frame_max=frame_max, heartbeat=heartbeat))
        self.send(commands.Connection.Open(virtual_host=vhost))
        return self.receive()

    def open_channel(self) -> None:
        assert isinstance(self.log_in(), commands.Connection.OpenOk)
        self.send(commands.Channel.Open(), 1)
        assert isinstance(self.receive(), commands.Channel.OpenOk)

    def assert_closed_with(self, code: int, text: str) -> None:
        close = self.receive()
        assert isinstance(close, commands.Connection.Close)
        assert (close.reply_code, text in close.reply_text) == (code, True), close.reply_text
        self.send(commands.Connection.CloseOk())
        assert self.receive() is None


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def client(broker: EmbeddedBroker) -> Iterator[Client]:
    client = Client(int(broker.url.rstrip("/").rsplit(":", 1)[1]))
    yield client
    client.close()


def test_another_protocol_is_answered_with_ours(client: Client) -> None:
    client.socket.sendall(b"GET / HT")
    assert client.socket.recv(100) == b"AMQP\x00\x00\x09\x01"
    assert client.socket.recv(100) == b""


@pytest.mark.parametrize("response", ["\0guest\0wrong", "\0nobody\0guest", "", "garbage"])
def test_wrong_credentials_are_refused(client: Client, response: str) -> None:
    close = client.log_in(response=response)
    assert isinstance(close, commands.Connection.Close)
    assert (close.reply_code, close.reply_text.startswith("ACCESS_REFUSED")) == (403, True)


def test_another_virtual_host_is_refused_by_name(client: Client) -> None:
    close = client.log_in(vhost="elsewhere")
    assert isinstance(close, commands.Connection.Close)
    assert (close.reply_code, close.reply_text) == (530, "NOT_ALLOWED - vhost elsewhere not found")


def test_a_frame_larger_than_agreed_closes_the_connection(client: Client) -> None:
    assert isinstance(client.log_in(frame_max=4096), commands.Connection.OpenOk)
    client.socket.sendall(struct.pack(">BHI", 3, 1, 5000))
    client.assert_closed_with(501, "FRAME_ERROR")


def test_bytes_that_are_no_frame_close_the_connection(client: Client) -> None:
    assert isinstance(client.log_in(), commands.Connection.OpenOk)
    client.socket.sendall(struct.pack(">BHI", 1, 1, 4) + b"\xff\xff\xff\xff" + b"\xce")
    client.assert_closed_with(502, "SYNTAX_ERROR")


def test_a_method_on_a_channel_that_is_not_open_closes_the_connection(client: Client) -> None:
    assert isinstance(client.log_in(), commands.Connection.OpenOk)
    client.send(commands.Queue.Declare(queue="q"), 7)
    client.assert_closed_with(504, "channel 7")


def test_a_body_without_a_publish_closes_the_connection(client: Client) -> None:
    client.open_channel()
    client.send(ContentBody(b"x"), 1)
    client.assert_closed_with(505, "UNEXPECTED_FRAME")


def test_a_method_in_the_middle_of_a_publish_closes_the_connection(client: Client) -> None:
    client.open_channel()
    client.send(commands.Basic.Publish(routing_key="q"), 1)
    client.send(ContentHeader(body_size=10), 1)
    client.send(commands.Queue.Declare(queue="q"), 1)
    client.assert_closed_with(505, "UNEXPECTED_FRAME")


@pytest.mark.parametrize(
    "method",
    [
        commands.Tx.Select(),
        commands.Basic.Qos(prefetch_count=1, global_=True),
        commands.Exchange.Declare(exchange="x", exchange_type="topic"),
        commands.Basic.Consume(queue="q", exclusive=True),
    ],
    ids=lambda method: method.name,
)
def test_what_the_embedded_broker_lacks_is_refused_plainly(client: Client, method: frame.FrameTypes) -> None:
    client.open_channel()
    client.send(method, 1)
    client.assert_closed_with(540, "NOT_IMPLEMENTED - the embedded broker has no")


def test_a_message_that_is_to_expire_is_refused_plainly(client: Client) -> None:
    client.open_channel()
    client.send(commands.Basic.Publish(routing_key="q"), 1)
    client.send(ContentHeader(properties=commands.Basic.Properties(expiration="1000")), 1)
    close = client.receive()
    assert isinstance(close, commands.Channel.Close)
    assert close.reply_code == 406
    assert close.reply_text.endswith("the embedded broker does not support 'expiration'")


def test_what_follows_on_a_channel_that_was_closed_with_an_error_is_ignored(client: Client) -> None:
    client.open_channel()
    client.send(commands.Queue.Declare(queue="unknown", passive=True), 1)
    client.send(commands.Basic.Publish(routing_key="q"), 1)
    client.send(ContentHeader(body_size=1), 1)
    client.send(ContentBody(b"x"), 1)
    close = client.receive()
    assert isinstance(close, commands.Channel.Close)
    assert close.reply_text == "NOT_FOUND - no queue 'unknown' in vhost '/'"
    assert (close.class_id, close.method_id) == (50, 10)
    client.send(commands.Channel.CloseOk(), 1)
    client.send(commands.Channel.Open(), 1)
    assert isinstance(client.receive(), commands.Channel.OpenOk)


def test_a_consumer_is_told_when_its_queue_is_deleted(client: Client) -> None:
    client.open_channel()
    client.send(commands.Queue.Declare(queue="doomed", exclusive=True), 1)
    client.send(commands.Basic.Consume(queue="doomed", consumer_tag="me"), 1)
    client.send(commands.Queue.Delete(queue="doomed"), 1)
    assert isinstance(client.receive(), commands.Queue.DeclareOk)
    assert isinstance(client.receive(), commands.Basic.ConsumeOk)
    cancel = client.receive()
    assert isinstance(cancel, commands.Basic.Cancel)
    assert cancel.consumer_tag == "me"
    assert isinstance(client.receive(), commands.Queue.DeleteOk)


def test_an_idle_connection_beats_and_a_silent_client_is_cut_off(client: Client) -> None:
    assert isinstance(client.log_in(heartbeat=1), commands.Connection.OpenOk)
    assert isinstance(client.receive(), Heartbeat)
    beats = 0
    while client.receive() is not None:
        beats += 1
    assert beats >= 2
