"""`inferfleet local up`: what it prints is what a shell can use."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from tests.patience import PATIENCE_S

from inferfleet.local.cli.services import _print_urls  # pyright: ignore[reportPrivateUsage]
from inferfleet.local.services import Services, ServicesChoice
from inferfleet.local.services.launcher import source_of

INFERFLEET = f"{sys.executable} -m inferfleet.cli"


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("INFERFLEET_")}


@contextmanager
def local_up(*options: str, environment: Mapping[str, str] = {}) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "inferfleet.cli", "local", "up", *options],
        env={**clean_environment(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str], count: int) -> str:
    assert process.stdout is not None
    return "".join(process.stdout.readline() for _ in range(count))


@pytest.mark.parametrize("kind", [ServicesChoice.NATIVE, ServicesChoice.EMBEDDED])
def test_a_shell_that_evaluates_its_lines_can_submit_a_job(kind: ServicesChoice) -> None:
    if (unavailable_reason := source_of(kind).unavailable_reason()) is not None:
        pytest.skip(f"{kind} services cannot run here: {unavailable_reason}")
    with local_up("--services", kind) as process:
        exports = lines(process, 2)
        assert [line.partition("=")[0] for line in exports.splitlines()] == [
            "export INFERFLEET_AMQP_URL",
            "export INFERFLEET_REDIS_URL",
        ]

        shell = subprocess.run(
            ["sh", "-ec", f"{exports}\n{INFERFLEET} pool declare default\n{INFERFLEET} submit hello"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

        assert shell.returncode == 0, shell.stderr
        assert re.fullmatch(r"inferfleet\.jobs\.default\n[0-9a-f-]{36}\n", shell.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(number: signal.Signals) -> None:
    with local_up("--services", "embedded") as process:
        lines(process, 2)

        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0
    assert out == ""
    assert err.startswith("services: embedded")
    assert err.endswith("ended\n")


def test_json_is_one_object() -> None:
    with local_up("--services", "embedded", "--json") as process:
        told = json.loads(lines(process, 1))

    assert list(told) == ["services", "kind", "amqp_url", "redis_url"]
    assert told["kind"] == "embedded"
    assert urlsplit(told["amqp_url"]).scheme == "amqp"
    assert urlsplit(told["redis_url"]).scheme == "redis"


def test_services_that_are_given_are_handed_on(services: Services) -> None:
    given = {"INFERFLEET_AMQP_URL": services.amqp_url, "INFERFLEET_REDIS_URL": services.redis_url}
    with local_up("--json", environment=given) as process:
        told = json.loads(lines(process, 1))

    assert (told["kind"], told["amqp_url"], told["redis_url"]) == (
        "urls",
        services.amqp_url,
        services.redis_url,
    )


def test_half_of_the_urls_is_wrong_use() -> None:
    with local_up(environment={"INFERFLEET_AMQP_URL": "amqp://somewhere/"}) as process:
        out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 2
    assert out == ""
    assert "missing: INFERFLEET_REDIS_URL" in err


@pytest.mark.parametrize("url", [None, "http://user:password@127.0.0.1:15672"])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_management_url_is_printed_where_there_is_one(
    url: str | None, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    services = Services(
        kind=ServicesChoice.DOCKER,
        amqp_url="amqp://127.0.0.1",
        redis_url="redis://127.0.0.1",
        description="containers",
        management_url=url,
    )
    _print_urls(services, as_json=as_json)
    printed = capsys.readouterr()
    if as_json:
        assert json.loads(printed.out).get("management_url") == url
    else:
        assert len(printed.out.splitlines()) == 2
        assert printed.err == (f"management of RabbitMQ: {url}\n" if url else "")
