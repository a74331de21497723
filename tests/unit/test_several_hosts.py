"""A URL with several hosts stands for one URL a host, and says which of them is wrong."""

from __future__ import annotations

import pytest

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.wire.address import one_each
from inferfleet.wire.rabbitmq.management import queues_url, tls_parameters

SECRET = "hunter2"


def test_each_host_has_the_user_the_path_and_the_options() -> None:
    assert one_each("amqps://me:a,b@one:1,[::1]:2,three/v?cafile=/ca.pem", setting="X") == [
        "amqps://me:a,b@one:1/v?cafile=/ca.pem",
        "amqps://me:a,b@[::1]:2/v?cafile=/ca.pem",
        "amqps://me:a,b@three/v?cafile=/ca.pem",
    ]


@pytest.mark.parametrize("url", ["amqp://me:a,b@one:5672/v", "amqp://one", "amqp:///", "unix:///run/x", "x"])
def test_a_url_with_one_host_stays_as_it_is(url: str) -> None:
    assert one_each(url, setting="X") == [url]


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("amqp://me:{}@one,,three/", "host 2 of 3"),
        ("amqp://me:{}@one,two:/", "host 2 of 2"),
        ("amqp://me:{}@one:0,two/", "host 1 of 2"),
        ("amqp://me:{}@one,two:65536/", "host 2 of 2"),
        ("amqp://me:{},one/", "host 1 of 2"),
        ("amqp://one:5672,{}:x/", "host 2 of 2"),
        ("amqp://me:{}@one:1,me:{}@two:2/", "more than once"),
        ("amqp://me:{}@one:1/,amqp://me:{}@two:2/", "more than one URL"),
        ("amqp://me:{}@one:1,amqp://me:{}@two:2", "more than one URL"),
        ("amqp://me:x@{}#y/z@one:1/", "%23"),
        ("amqp://me:{}#y@one:1/", "%23"),
    ],
)
def test_a_wrong_host_is_named_without_what_may_be_a_password(url: str, part: str) -> None:
    with pytest.raises(ConfigurationError, match=f"INFERFLEET_AMQP_URL.*{part}") as caught:
        one_each(url.format(SECRET, SECRET), setting="INFERFLEET_AMQP_URL")
    assert SECRET not in str(caught.value)


def test_the_http_api_takes_virtual_host_and_certificates_of_a_url_with_several_hosts() -> None:
    amqp_url = "amqps://me:pw@one:5671,two:5671/v?cafile=/ca.pem"
    assert queues_url("https://one:15671", amqp_url=amqp_url) == "https://one:15671/api/queues/v"
    assert tls_parameters("https://one:15671", amqp_url=amqp_url) == {"cafile": "/ca.pem"}
