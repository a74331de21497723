"""What of a URL may be shown, and what of a library's words about it."""

from __future__ import annotations

import traceback

import pytest

from inferfleet.exporter.settings import ExporterSettings
from inferfleet.local.services import Services, ServicesChoice
from inferfleet.schemas.errors import ConfigurationError, InferfleetError
from inferfleet.schemas.settings import ProducerSettings, ServiceSettings, WorkerSettings, read_settings
from inferfleet.wire.address import redacted, without_path, without_secrets
from inferfleet.wire.rabbitmq.connection import open_amqp
from inferfleet.wire.rabbitmq.management import ManagementApi
from inferfleet.wire.redis.connection import redis_client

SECRET = "hunter2-xyzzy"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:{}@host:5672/vhost", "amqp://user:***@host:5672/vhost"),
        ("amqps://user:{}@host/%2Fv", "amqps://user:***@host/%2Fv"),
        ("redis://:{}@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://{}@host", "redis://***@host"),
        ("redis://host:6379/0?password={}&db=1", "redis://host:6379/0"),
        ("rediss://host/0?username=u&password={}", "rediss://host/0"),
        ("unix:///run/redis.sock?password={}", "unix:///run/redis.sock"),
        ("unix://user:{}@/run/redis.sock", "unix://user:***@/run/redis.sock"),
        ("amqp://u1:{}@one:1,u2:{}@two:2/v", "amqp://u1:***@one:1,u2:***@two:2/v"),
        ("redis://one:1,:{}@two:2/0", "redis://***,:***@two:2/0"),
        ("amqp://user:%40{}%2F@[::1]:5672/", "amqp://user:***@[::1]:5672/"),
        ("https://user:{}@host:15671/?cafile=/ca.pem", "https://user:***@host:15671/"),
        ("amqp://user:{}/x@host/", "amqp://***"),
        ("amqp://user:x/{}@host/", "amqp://***"),
        ("amqp://user:{}?x@host/", "amqp://***"),
        ("amqp://user:x#{}@host/", "amqp://***"),
        ("redis://host/0?password=a@{}", "redis://***"),
        ("redis://:x,{}@host/0", "redis://***,***@host/0"),
        ("redis://:{},x@host/0", "redis://***,***@host/0"),
        ("redis://user:{}", "redis://***"),
        ("redis://us er:{}@ho st/0", "redis://***:***@***/0"),
        ("user:{}@host", "***"),
        (" amqp://user:{}@host/", "***"),
        ("{}", "***"),
        ("", "***"),
        ("redis://one:1,two:2/0", "redis://one:1,two:2/0"),
        ("file:///run/secrets/redis-url", "file:///run/secrets/redis-url"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redacted(url.replace("{}", SECRET)) == shown


def test_a_password_with_a_comma_before_several_hosts_is_no_words_of_anybody() -> None:
    words = f"{SECRET},x is wrong"
    assert without_secrets(words, f"amqp://guest:{SECRET},x@one,two/") == "*** is wrong"


def test_a_library_s_words_are_shown_without_the_url_s_passwords() -> None:
    url = "amqp://guest:p%40ss@host/?auth=plain&x=other"
    words = f"p@ss and p%40ss, other and {url}: guest may not passp@ss"
    assert without_secrets(words, url) == "*** and ***, *** and ***: guest may not passp@ss"
    assert without_secrets("no URL: hunter2", "hunter2") == "no URL: ***"


def test_a_service_s_words_are_shown_without_a_path_that_may_hold_a_password() -> None:
    url = f"amqp://me:x@one/v,me:{SECRET}@two/%2Fw"
    assert without_path(f"vhost v,me:{SECRET}@two//w not found", url) == "vhost *** not found"
    assert without_path("vhost v not found", "amqp://me:v@one/v") == "vhost v not found"


MALFORMED = [
    "{}://user:" + SECRET + "\u2100@host/0",
    "{}://user:[" + SECRET + "]@host/0",
    "{}://user:" + SECRET + "#x@host/0",
    "{}://:" + SECRET + "@host:port/0",
    "{}://host:" + SECRET + "/0",
    "{}://host/0?" + SECRET + "@host",
    "{}://host/0?password=" + SECRET + "&nothing=1",
]
"""What URL parsers refuse in words that quote it."""


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_no_traceback_quotes_a_url_that_cannot_be_one(malformed: str) -> None:
    told: list[str] = []

    def tell(error: InferfleetError) -> None:
        told.append("".join(traceback.format_exception(error)))

    with pytest.raises(InferfleetError) as refused:
        async with open_amqp(malformed.format("amqp"), timeout_s=0.1, name="test"):
            pass
    tell(refused.value)
    try:
        redis_client(malformed.format("redis"))
    except InferfleetError as error:
        tell(error)
    for url, amqp_url in (
        (malformed.format("http"), "amqp://host"),
        ("http://host", malformed.format("amqp")),
    ):
        try:
            ManagementApi(url, amqp_url=amqp_url, timeout_s=0.1).check()
        except InferfleetError as error:
            tell(error)
    for variable in ("amqp_url", "redis_url"):
        with pytest.raises(ConfigurationError) as refused_setting:
            read_settings(ServiceSettings, **{variable: malformed.format("http")})
        tell(refused_setting.value)
    assert SECRET not in "".join(told)


def test_no_settings_and_no_services_show_a_secret_of_theirs() -> None:
    amqp_url, redis_url, management_url = (
        f"amqp://u:{SECRET}@h/",
        f"redis://h/0?password={SECRET}",
        f"http://u:{SECRET}@h",
    )
    shown = [
        repr(ProducerSettings(amqp_url=amqp_url, redis_url=redis_url)),
        repr(WorkerSettings(amqp_url=amqp_url, engine_args={"hf_token": SECRET})),
        repr(ExporterSettings(amqp_url=amqp_url, management_url=management_url)),
        repr(
            Services(
                kind=ServicesChoice.URLS,
                description="",
                amqp_url=amqp_url,
                redis_url=redis_url,
                management_url=management_url,
            )
        ),
    ]
    assert SECRET not in "".join(shown)
