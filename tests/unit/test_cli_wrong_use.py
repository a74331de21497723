"""Wrong use of the command line: exit code 2, a sentence on stderr, nothing on stdout, no traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from inferfleet.cli import main

NOWHERE = {
    "INFERFLEET_REDIS_URL": "redis://127.0.0.1:1/0",
    "INFERFLEET_AMQP_URL": "amqp://guest:guest@127.0.0.1:1/",
}
"""Addresses where nothing listens: what is refused here is refused before anybody is asked."""


@dataclass(frozen=True)
class Ended:
    code: int | str | None
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: str, stdin: str = "", variables: Mapping[str, str] = {}) -> Ended: ...


@pytest.fixture
def inferfleet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""

    def run(*arguments: str, stdin: str = "", variables: Mapping[str, str] = {}) -> Ended:
        monkeypatch.setattr(sys, "argv", ["inferfleet", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        for name, value in {**NOWHERE, **variables}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capfd.readouterr()
        return Ended(exited.value.code, captured.out, captured.err)

    return run


def assert_refused(ended: Ended, message: str) -> None:
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either a prompt or --body FILE"),
        (("hello", "--body", "x.json"), "give either a prompt or --body FILE"),
        (("hello", "--priority", "10"), "'10' is neither a number from 0 to 9 nor one of batch (1)"),
        (("hello", "--priority", "soon"), "'soon' is neither a number"),
        (("hello", "--expires", "soon"), "'--expires': 'soon' is neither a duration like 90s"),
        (("hello", "--expires", "2027-01-31T12:00:00"), "nor a time with its zone"),
        (("hello", "--expires", "99999999999d"), "neither a duration"),
        (("hello", "--on-busy", "wait"), "Invalid value for '--on-busy': 'wait' is not one of 'enqueue'"),
        (("hello", "--on-busy", "reject"), "on_busy: only a session can be busy"),
        (("then {{jobs.0.text}}",), "{{jobs.0.text}} stands for the text of a job in after"),
        (("hello", "--endpoint", "/v1/embeddings", "--max-tokens", "5"), "generates no text"),
        (("hello", "--endpoint", "/v1/completions", "--system", "x"), "has no system message"),
        (("hello", "--endpoint", "/v1/rerank"), "needs more than a prompt"),
        (("hello", "--timeout", "long"), "Invalid value for '--timeout': must be a number, not 'long'"),
        (("hello", "--max-tokens", ""), "Invalid value for '--max-tokens': must be a whole number, not ''"),
        (("hello", "--endpoint", "/v1/images"), "'/v1/images' is not one of"),
        (("hello", "--metadata", "novalue"), "'--metadata': 'novalue' is not of the form key=value"),
        (("hello", "--metadata", "a=1", "--metadata", "a=1"), "'--metadata': 'a' is given twice"),
        (("--body", "/does/not/exist"), "cannot read /does/not/exist: No such file"),
        (("hello", "--colour", "red"), "No such option: --colour"),
        (("hello", "--after", "j-1"), "inferfleet: after[0]: 'j-1' is not a UUID in lower case"),
    ],
)
def test_submit_refuses_what_it_cannot_read(
    inferfleet: Run, arguments: tuple[str, ...], message: str
) -> None:
    assert_refused(inferfleet("submit", *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get",), "Missing argument 'JOB'"),
        (("get", "-"), "stdin has no job ids"),
        (("get", "j-1", "--timeout", "5"), "--timeout limits --wait: give both"),
        (("get", "j-1", "--wait", "--timeout", "-1"), "'--timeout': -1 is below the minimum 0"),
        (("top", "--once", "--interval", "5"), "'--interval': --once prints one snapshot"),
        (("top", "--interval", "0.1"), "'--interval': 0.1 is below the minimum 0.2"),
        (("worker", "--pool", "a", "list"), "'--pool': is for a worker that runs, not for `worker list`"),
        (("worker", "--max-running", "2", "drain", "w"), "'--max-running': is for a worker that runs"),
        (("agent", "list", "--limit", "none"), "'--limit': must be a whole number, not 'none'"),
        (("stream", "j-1", "--after", "here"), "'here' is not the id of a journal line, like '0-0:0'"),
        (("stream", "j-1", "--after", ""), "'' is not the id of a journal line"),
        (("chat", "--priority", "soon"), "'soon' is neither a number"),
        (("rollout", "start", "a", "--to", "b", "--max-error-rate", "0.01"), "give it with its sign"),
    ],
)
def test_other_commands_refuse_what_they_cannot_read(
    inferfleet: Run, arguments: tuple[str, ...], message: str
) -> None:
    assert_refused(inferfleet(*arguments), message)


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("{nonsense", "- is not JSON"),
        ("", "- is not JSON"),
        ("[1]", "- holds a list; a request body is a JSON object"),
        ('{"temperature": NaN}', "- is not JSON"),
        ('{"messages": []}\n{"messages": []}', "- is not JSON: trailing characters at line 2"),
    ],
)
def test_submit_refuses_a_body_that_is_none(inferfleet: Run, stdin: str, message: str) -> None:
    assert_refused(inferfleet("submit", "--body", "-", stdin=stdin), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"user": "Andr\xe9"}', "is not UTF-8 text: byte 0xe9 at position 14"),
        ('{"user": "x"}'.encode("utf-16")[:-1], "is not UTF-16 text"),
        (b'{"a":' * 300, "recursion limit exceeded"),
    ],
)
@pytest.mark.parametrize("command", [("submit", "--body"), ("session", "import")])
def test_a_file_that_is_no_json_in_a_known_encoding_is_refused(
    inferfleet: Run, tmp_path: Path, command: tuple[str, ...], content: bytes, message: str
) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    assert_refused(inferfleet(*command, str(file)), message)


@pytest.mark.parametrize("command", ["submit", "get", "cancel", "stream", "worker"])
def test_a_variable_that_is_wrong_is_named(inferfleet: Run, command: str) -> None:
    ended = inferfleet(
        command, *(["x"] if command != "worker" else []), variables={"INFERFLEET_AMQP_URL": "x"}
    )
    assert_refused(ended, "INFERFLEET_AMQP_URL: the scheme '' is not one of amqp, amqps")


@pytest.mark.parametrize("url", ["redis://host:port/0", "redis://host:99999/0", "redis://[half/0"])
def test_an_address_that_cannot_be_one_is_named(inferfleet: Run, url: str) -> None:
    ended = inferfleet("get", "x", variables={"INFERFLEET_REDIS_URL": url})
    assert_refused(ended, "INFERFLEET_REDIS_URL")


@pytest.mark.parametrize("url", ["amqp://host:port/", "amqp://host:99999/", "amqp://", "amqp://[half/"])
def test_an_amqp_address_that_cannot_be_one_is_named(inferfleet: Run, url: str) -> None:
    ended = inferfleet("pool", "declare", "somewhere", variables={"INFERFLEET_AMQP_URL": url})
    assert_refused(ended, "INFERFLEET_AMQP_URL")


def test_a_pool_must_have_a_pools_name(inferfleet: Run) -> None:
    assert_refused(inferfleet("pool", "declare", "Big GPUs"), "'Big GPUs' is not a pool name")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine-args", "{nonsense"), "--engine-args is not JSON"),
        (("--engine-args", "[1, 2]"), '--engine-args is not a JSON object like {"max_model_len": 8192}'),
        (("--engine", "magic"), "no engine is named 'magic'; installed are: "),
        (("--max-running", "0"), "INFERFLEET_MAX_RUNNING: 0 is below the minimum 1"),
        (("--max-running", "many"), "Invalid value for '--max-running': must be a whole number, not 'many'"),
        (("--base-url", "http://gpu:8000/v1"), "--base-url: the engine 'vllm' asks no server"),
        (("--look-ahead", "-1"), "INFERFLEET_LOOK_AHEAD: -1 is below the minimum 0"),
        (("--http-port", "70000"), "INFERFLEET_HTTP_PORT: 70000 is above the maximum 65535"),
        (("--pool", "Big GPUs"), "INFERFLEET_POOL: 'Big GPUs' is not a pool name: 1 to 63"),
        (("--worker-id", "a b"), "INFERFLEET_WORKER_ID: 'a b' is not a worker id: 1 to 128"),
    ],
)
def test_worker_refuses_an_option_by_its_name(
    inferfleet: Run, options: tuple[str, ...], message: str
) -> None:
    assert_refused(inferfleet("worker", *options), message)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"INFERFLEET_ENGINE_ARGS": "{nonsense"}, "INFERFLEET_ENGINE_ARGS: is not JSON"),
        ({"INFERFLEET_DRAIN_TIMEOUT_S": "soon"}, "INFERFLEET_DRAIN_TIMEOUT_S: must be a number, not 'soon'"),
        ({"INFERFLEET_LOG_LEVEL": "LOUD"}, "INFERFLEET_LOG_LEVEL: 'LOUD' is not one of CRITICAL"),
        ({"INFERFLEET_LOG_FORMAT": "xml"}, "INFERFLEET_LOG_FORMAT: 'xml' is not one of 'json' or "),
        ({"INFERFLEET_QUEUE_TYPE": "lifo"}, "INFERFLEET_QUEUE_TYPE: 'lifo' is not one of 'classic'"),
    ],
)
def test_worker_refuses_a_variable_by_its_name(
    inferfleet: Run, variables: dict[str, str], message: str
) -> None:
    assert_refused(inferfleet("worker", variables=variables), message)


def test_an_unknown_command_is_wrong_use(inferfleet: Run) -> None:
    assert_refused(inferfleet("explode"), "No such command 'explode'")


@pytest.mark.parametrize(
    "option", [("--plot", "plan.svg"), ("--startup-s", "120"), ("--engine-profile", "llama-3.1-8b-h100")]
)
def test_autoscale_refuses_an_option_of_simulations_alone(inferfleet: Run, option: tuple[str, str]) -> None:
    manifest = Path(__file__).parents[2] / "deploy/keda/base/pool/scaledobject.yaml"
    ended = inferfleet("autoscale", "--scaledobject", str(manifest), *option)
    assert_refused(ended, f"'{option[0]}': is only for a simulation: give --simulate TRACE.csv too")


@pytest.mark.parametrize("option", [("--engine", "vllm"), ("--speedup", "2"), ("--until-idle",)])
def test_a_simulation_refuses_an_option_of_workers(inferfleet: Run, option: tuple[str, ...]) -> None:
    manifest = Path(__file__).parents[2] / "deploy/keda/base/pool/scaledobject.yaml"
    ended = inferfleet("autoscale", "--scaledobject", str(manifest), "--simulate", "trace.csv", *option)
    assert_refused(ended, f"'{option[0]}': is not for a simulation: leave it or --simulate out")


@pytest.mark.parametrize(
    "command",
    [
        "get",
        "stream",
        "cancel",
        "dead show",
        "dead purge",
        "dead replay",
        "dead purge some",
        "session show",
        "session delete",
        "session export",
        "session fork some",
        "session import --session",
        "chat --session",
        "submit hello --session",
        "submit hello --idempotency-key",
        "pool declare",
        "pool declare some",
        "worker drain",
        "schema export",
    ],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_argument_is_a_variable_that_was_not_set(inferfleet: Run, command: str, empty: str) -> None:
    assert_refused(inferfleet(*command.split(), empty), "is empty")


@pytest.mark.parametrize("command", ["purge", "replay"])
def test_all_dead_letters_are_meant_only_by_saying_so(inferfleet: Run, command: str) -> None:
    for arguments in ((), ("some", "--all"), ("some", "--all", "--yes"), ("--yes",)):
        assert_refused(inferfleet("dead", command, *arguments), "give the ids of dead letters, or --all")
    # Nobody is at the keyboard.
    assert_refused(inferfleet("dead", command, "--all"), "add --yes")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("heartbeet=10", "a parameter 'heartbeet' (did you mean 'heartbeat'?)"),
        ("cafle=/ca.pem", "a parameter 'cafle' (did you mean 'cafile'?)"),
        ("nonsense=1", "a parameter 'nonsense'; there are auth, cadata"),
        ("heartbeat=", "heartbeat must be a whole number of seconds"),
        ("heartbeat=soon", "heartbeat must be a whole number of seconds"),
        ("timeout=-1", "timeout must be a whole number of seconds"),
    ],
)
def test_a_misspelt_parameter_of_an_amqp_address_is_named(inferfleet: Run, query: str, message: str) -> None:
    url = f"{NOWHERE['INFERFLEET_AMQP_URL']}?{query}"
    ended = inferfleet("pool", "declare", "somewhere", variables={"INFERFLEET_AMQP_URL": url})
    assert_refused(ended, message)
