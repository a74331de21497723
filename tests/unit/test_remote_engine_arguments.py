"""The arguments of the remote engine: what it refuses, and that its page lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.engine_factory import make_engine
from inferfleet.worker.engines.openai.arguments import OpenaiArguments, base_urls

PAGE = (Path(__file__).parents[2] / "docs/how-to/use-a-remote-engine.md").read_text(encoding="utf-8")


def test_every_argument_is_documented_with_its_default() -> None:
    table = PAGE.split("\n## Arguments\n")[1].split("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))

    defaults = {name: str(value).replace("None", "none") for name, value in OpenaiArguments()}
    assert documented == defaults


def test_addresses_are_separated_by_commas() -> None:
    assert base_urls("http://one:8000/v1/, https://[::1]:8000/v1") == [
        "http://one:8000/v1",
        "https://[::1]:8000/v1",
    ]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("", "needs the address of a server"),
        ("one:8000", "'one:8000' is not the address"),
        ("http://one:8000v1", "is not the address"),
        ("http://one/v1,http://user:hunter2@two/v1", "address 2 of 2"),
        ("http://one/v1?key=hunter2", "address 1 of 1"),
        ("http://one/v1?", "address 1 of 1"),
        ("http://[::1/v1", "is not the address"),
        ("http://[::zz]/v1", "is not the address"),
        ("http://one:99999/v1", "is not the address"),
    ],
)
def test_what_is_no_address_is_refused_without_secrets(setting: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)) as refused:
        make_engine(WorkerSettings(engine="openai", base_url=setting))
    assert "hunter2" not in str(refused.value)


def test_an_unknown_argument_is_refused_with_the_one_that_is_meant() -> None:
    settings = WorkerSettings(
        engine="openai", base_url="http://one/v1", engine_args={"api_key_fil": "/run/key"}
    )

    with pytest.raises(ConfigurationError, match="api_key_file"):
        make_engine(settings)


@pytest.mark.parametrize("headers", [{"a b": "x"}, {"": "x"}, {"X-Team": "hunter2\nX-Other: y"}])
def test_what_is_no_header_is_refused_without_its_value(headers: dict[str, str]) -> None:
    settings = WorkerSettings(engine="openai", base_url="http://one/v1", engine_args={"headers": headers})

    with pytest.raises(ConfigurationError, match="headers") as refused:
        make_engine(settings)
    assert "hunter2" not in str(refused.value)
