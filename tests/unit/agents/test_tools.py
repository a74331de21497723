"""What a function becomes as a tool, and which are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
from pydantic import Field

from inferfleet.agents import Agent, McpServer, ToolContext, tool
from inferfleet.agents.agent import by_name
from inferfleet.agents.loading import load_agents
from inferfleet.schemas.errors import ConfigurationError, InvalidJobError

CONTEXT = ToolContext(run_id="r", call="0.0", tenant="t", idempotency_key="k", fleet=cast("Any", None))


def untyped(city) -> str:  # type: ignore[no-untyped-def]
    return ""


def positional(city: str, /) -> str:
    return ""


def optional(context: ToolContext | None = None) -> str:
    return ""


def annotated(context: Annotated[ToolContext, "whose call"]) -> str:
    return ""


def several(*cities: str) -> str:
    return ""


def test_the_model_reads_name_docstring_and_signature() -> None:
    @tool
    def weather(
        context: ToolContext, city: Annotated[str, Field(description="English.")], days: int = 1
    ) -> str:
        """Say what the weather will be."""
        return ""

    assert (weather.name, weather.description) == ("weather", "Say what the weather will be.")
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "title": "City", "description": "English."},
            "days": {"type": "integer", "title": "Days", "default": 1},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("function", "options", "why"),
    [
        (untyped, {}, "parameter 'city' needs a type"),
        (positional, {}, "cannot be passed by its name"),
        (several, {}, "cannot be passed by its name"),
        (optional, {}, "type of 'context' must be ToolContext"),
        (annotated, {}, "type of 'context' must be ToolContext"),
        (lambda: "", {}, "'<lambda>': a name has 1 to 64"),
        (lambda: "", {"name": "x", "timeout_s": 0}, "timeout_s=0 is not above 0"),
        (lambda: "", {"name": "x", "retries": -1}, "retries=-1 must be at least 0"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_refused(function: Any, options: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        tool(function, **options)


@pytest.mark.parametrize("arguments", ["{", "[1]", '{"n": "many"}', '{"n": 1, "m": 2}', "{}"])
async def test_wrong_arguments_do_not_reach_the_function(arguments: str) -> None:
    def count(n: int) -> str:
        raise AssertionError

    outcome = await tool(count, retries=1).call(arguments, CONTEXT)
    assert outcome.failed
    assert "AssertionError" not in outcome.content


def test_names_are_unique() -> None:
    def look() -> str:
        """Look."""
        return ""

    with pytest.raises(ConfigurationError, match="several tools are named look"):
        Agent(name="a", tools=[tool(look), tool(look)])
    with pytest.raises(ConfigurationError, match="agent 'a b'"):
        Agent(name="a b")
    with pytest.raises(InvalidJobError, match="pool"):
        Agent(name="a", pool="No pool")
    child = Agent(name="child")
    parent = Agent(name="parent", tools=[child.as_tool()])
    assert by_name([parent]) == {"parent": parent, "child": child}
    with pytest.raises(ConfigurationError, match="two agents are named 'child'"):
        by_name([parent, Agent(name="child", instructions="Another.")])


def test_a_place_without_an_agent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_agents.py").write_text(
        "from inferfleet.agents import Agent\na = Agent(name='a')\nb = 1\n"
    )
    assert [agent.name for agent in load_agents(["some_agents:a"])] == ["a"]
    for place, why in (
        ("some_agents", "is not of the form module:name"),
        ("some_agents:b", "is a int, not an Agent"),
        ("some_agents:c", "is not there; the agents of 'some_agents' are: a"),
        ("no_agents:a", "there is no module 'no_agents'"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            load_agents([place])


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("divides", "\nzero = 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("does_not_parse", "\n\ndef f(:\n", "line 3: SyntaxError: invalid syntax"),
        (
            "imports",
            "import no_such_library",
            "line 1: ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("exits", "import sys\nsys.exit('no')", "line 2: SystemExit: no"),
        (
            "misspells",
            "from inferfleet.agents import RunLimits\nRunLimits(max_csot=1)",
            r"line 2: TypeError: RunLimits has no field 'max_csot' \(did you mean 'max_cost'\?\)",
        ),
        (
            "exceeds",
            "from inferfleet.agents import RunLimits\nRunLimits(max_steps=0)",
            "line 2: max_steps: 0 is below the minimum 1",
        ),
        (
            "names",
            "from inferfleet.agents import Agent\nAgent(name='a b')",
            "line 2: agent 'a b': a name has 1 to 64",
        ),
        (
            "deep",
            "import json\nvalue = json.loads('{')",
            "deep.py, line 2: JSONDecodeError: Expecting property name",
        ),
    ],
)
def test_a_module_of_agents_that_raises_is_an_error_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(
        ConfigurationError, match=f"'{name}:a' cannot be imported: {tmp_path}/{name}.py, "
    ) as it:
        load_agents([f"{name}:a"])
    assert it.match(why)
    assert "\n" not in str(it.value)


def test_options_of_the_tools_of_a_server_are_known() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"'needs_aproval' is not an option of a tool \(did you mean 'needs_approval'",
    ):
        McpServer(url="http://127.0.0.1:1/mcp", options={"needs_aproval": True})
    with pytest.raises(ConfigurationError, match="'invoke' is not an option of a tool"):
        McpServer(url="http://127.0.0.1:1/mcp", options={"invoke": print})


async def decide_later(_: object) -> str:
    return "done"


class DecidesLater:
    async def __call__(self, _: object) -> str:
        return "done"


@pytest.mark.parametrize("decide", [decide_later, DecidesLater(), partial(decide_later)])
def test_an_agent_refuses_a_function_that_cannot_decide_at_once(decide: Any) -> None:
    with pytest.raises(ConfigurationError, match="agent clerk: decide is an async function"):
        Agent(name="clerk", decide=decide)
