"""Tools of a real MCP server, which speaks on its stdin and stdout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.integration.agents.conftest import StartRunner, result_of

from inferfleet.agents import Agent, AgentRuns, McpServer
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.run import ToolEnded
from inferfleet.testing.workers import ScriptedAnswers

SERVER = """
import os
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("a shop")

@server.tool()
def price(article: str) -> str:
    '''Look up a price.'''
    if article == "none":
        raise ToolError("there is no such article")
    if article == "poison":
        os._exit(1)
    return f"{article} costs {os.environ['PRICE']}."

server.run(transport="stdio")
"""


@pytest.fixture
def shop(tmp_path: Path) -> McpServer:
    (tmp_path / "shop.py").write_text(SERVER)
    return McpServer(
        command=[sys.executable, str(tmp_path / "shop.py")],
        env={"PRICE": "7", "PYTHONPATH": ":".join(sys.path)},
        prefix="shop_",
        options={"repeatable": True, "timeout_s": 100},
    )


async def test_tools_of_a_server_are_called_and_one_that_kills_it_spoils_no_other_call(
    runs: AgentRuns, model: ScriptedAnswers, start_runner: StartRunner, pool: str, shop: McpServer
) -> None:
    articles = ("tea", "none", "poison")
    model.reply_to("cost?", with_calls=[("shop_price", {"article": article}) for article in articles])
    model.reply_to("error: McpToolError:", with_text="Seven each.")
    await start_runner(Agent(name="buyer", mcp_servers=[shop], pool=pool))
    run_id = await runs.start("buyer", "cost?", queue=pool)
    assert (await result_of(runs, run_id)).text == "Seven each."
    results = {step.call: step.content for step in await runs.steps(run_id) if isinstance(step, ToolEnded)}
    assert results["0.0"] == "tea costs 7."
    assert "there is no such article" in results["0.1"]


async def test_a_server_says_what_its_tools_are(shop: McpServer) -> None:
    (price,) = await shop.tools()
    assert (price.name, price.description, price.repeatable) == ("shop_price", "Look up a price.", True)
    assert price.parameters["properties"]["article"]["type"] == "string"


async def test_a_server_that_does_not_answer_is_an_error_at_the_start(
    start_runner: StartRunner, pool: str
) -> None:
    for server in (McpServer(command=["/no/such/server"]), McpServer(url="http://127.0.0.1:9/mcp")):
        runner = await start_runner(Agent(name="buyer", mcp_servers=[server], pool=pool))
        with pytest.raises(ConfigurationError, match="does not list its tools"):
            await runner.task
    with pytest.raises(ConfigurationError, match="either a url or a command"):
        McpServer()
