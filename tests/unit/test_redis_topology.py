"""URLs of Sentinels and clusters: what they mean, and which part is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection

from inferfleet.schemas.errors import ConfigurationError, ServiceUnreachableError
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.address import redacted, without_secrets
from inferfleet.wire.redis.cluster import ClusterClient, slot_of
from inferfleet.wire.redis.connection import open_redis, redis_client
from inferfleet.wire.redis.topology import Topology, TopologyKind, topology_of

SECRET = "hunter2-xyzzy"


@pytest.mark.parametrize("url", ["redis://:pw@host:6379/0", "rediss://host", "unix:///run/redis.sock?db=1"])
def test_a_url_of_one_server_has_no_topology(url: str) -> None:
    assert topology_of(url) is None


def test_sentinels_have_a_service_and_may_have_a_login_of_their_own() -> None:
    url = "redis+sentinel://me:pw@one,two:7/main/3?client_name=x&sentinel_username=s&sentinel_password=p"
    assert topology_of(url) == Topology(
        TopologyKind.SENTINEL,
        ("redis://me:pw@one:26379/3?client_name=x", "redis://me:pw@two:7/3?client_name=x"),
        "main",
        {"username": "s", "password": "p"},
    )


def test_a_cluster_has_nodes() -> None:
    assert topology_of("rediss+cluster://:pw@one,[::1]:7/?ssl_cert_reqs=none") == Topology(
        TopologyKind.CLUSTER,
        ("rediss://:pw@one/?ssl_cert_reqs=none", "rediss://:pw@[::1]:7/?ssl_cert_reqs=none"),
    )


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("redis://:{}@one,two/0", "names 2 hosts: that needs redis.sentinel"),
        ("redis+sentinel://:{}@one,two", "no service"),
        ("redis+sentinel://:{}@one/a b/0", "no service"),
        ("redis+sentinel://:{}@one/main/x", "database 'x'"),
        ("redis+sentinel://:{}@one,two:x/main/0", "host 2 of 2"),
        ("redis+sentinel://:{}@/main/0", "names no host"),
        ("redis+nothing://:{}@one", r"redis\+sentinel and redis\+cluster"),
        ("redis+cluster://:{}@one/1", "no other database than 0"),
        ("redis+cluster://:{}@one?db=2", "no other database than 0"),
        ("redis+cluster://:{}@one?sentinel_password=x", r"need redis\+sentinel"),
        ("redis+cluster://:{}@one?passwrd={}", "did you mean"),
        ("redis+cluster://:{}@one?ssl_ca_certs=/x", "needs rediss"),
        ("redis+cluster://:{}@one:1,:{}@two:2", "more than once"),
    ],
)
def test_the_wrong_part_is_named_and_the_password_is_not(url: str, part: str) -> None:
    with pytest.raises(ConfigurationError, match=f"INFERFLEET_REDIS_URL.*{part}") as caught:
        redis_client(url.format(SECRET, SECRET))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
async def test_the_nodes_that_do_not_answer_are_named_and_nothing_else(kind: str) -> None:
    url = f"redis+{kind}://:{SECRET}@127.0.0.1:1,127.0.0.1:2/{'main' if kind == 'sentinel' else ''}"
    with pytest.raises(ServiceUnreachableError, match=r"connecting to 127.0.0.1:[12]") as caught:
        async with open_redis(url):
            pass
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_settings_take_each_form_and_no_other() -> None:
    for kind in ("sentinel", "cluster"):
        for scheme in ("redis", "rediss"):
            ServiceSettings(redis_url=f"{scheme}+{kind}://one/main")
    with pytest.raises(ValueError, match=r"redis\+nothing"):
        ServiceSettings(redis_url="redis+nothing://one")


def test_no_form_is_shown_with_its_secrets() -> None:
    url = f"redis+sentinel://me:{SECRET}@one:1,two:2/main/0?sentinel_password={SECRET}2"
    assert redacted(url) == "redis+sentinel://me:***@one:1,two:2/main/0"
    assert SECRET not in without_secrets(f"wrong: {SECRET}, {SECRET}2", url)
    assert SECRET not in repr(topology_of(url))


def test_tls_is_for_the_sentinels_and_for_redis() -> None:
    client: Any = redis_client("rediss+sentinel://one/main?ssl_check_hostname=false")
    pool = client.connection_pool
    assert issubclass(pool.connection_class, SentinelManagedSSLConnection)
    (sentinel,) = pool.sentinel_manager.sentinels
    assert sentinel.connection_pool.connection_class is SSLConnection
    assert pool.connection_kwargs["ssl_check_hostname"] is False
    assert sentinel.connection_pool.connection_kwargs["ssl_check_hostname"] is False


def test_tls_is_for_all_nodes_of_a_cluster() -> None:
    client = redis_client("rediss+cluster://one,two?ssl_check_hostname=false")
    assert isinstance(client, ClusterClient)
    pool: Any = client.node("three:6379").connection_pool
    assert issubclass(pool.connection_class, SSLConnection)
    assert pool.connection_kwargs["ssl_check_hostname"] is False


def test_keys_with_the_same_tag_are_in_one_slot() -> None:
    assert slot_of("inferfleet:job:{a}") == slot_of(b"inferfleet:job:{a}:journal") == slot_of("a")
