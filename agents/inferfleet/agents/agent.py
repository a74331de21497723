"""Agents: a model with instructions and tools, one of which may be another agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import iscoroutinefunction
from itertools import chain
from typing import Any

from inferfleet.agents.mcp_servers import McpServer
from inferfleet.agents.tool import Tool, check_name
from inferfleet.producer.job_making import check_pool
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.job import DEFAULT_POOL, Priority
from inferfleet.schemas.run import RunLimits

CHILD_PARAMETERS: Mapping[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "What the agent is asked."}},
    "required": ["input"],
    "additionalProperties": False,
}


Decision = str | Sequence[tuple[str, Mapping[str, Any]]] | None
"""A final answer, the tool calls to make, each a name and its arguments, or ``None``: the model decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A model that calls tools until it has an answer. ``decide`` may take the model's place.

    ``pool`` answers, at ``priority``; a child has the lower one of its own and its parent's. ``options`` are
    members of each request, like ``temperature``. Runs that wait for a runner do not keep the agent: a runner
    uses the instructions and tools that it has then.
    """

    name: str
    instructions: str = ""
    description: str = ""
    """What other agents read, if they may call this one."""
    tools: Sequence[Tool | AgentTool] = ()
    mcp_servers: Sequence[McpServer] = ()
    """Servers whose tools it has, too. A runner asks for them when it starts."""
    pool: str = DEFAULT_POOL
    priority: int = Priority.NORMAL
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limits: RunLimits = field(default_factory=RunLimits)
    decide: Callable[[Sequence[Mapping[str, Any]]], Decision] | None = None
    """A function that is asked before the model, with the messages so far. What it decides is recorded like
    an answer of the model, and counts as one in ``limits``; it costs no tokens. It may be asked again if its
    runner dies, so it must have no effects, and it must not block: its runner does nothing else meanwhile. If
    it raises, the run fails.
    """

    async def with_mcp_tools(self) -> Agent:
        """Return this agent with the tools of its MCP servers.

        Raises:
            ConfigurationError: A server does not answer, or two tools have the same name.

        """
        if not self.mcp_servers:
            return self
        listed = [await server.tools() for server in self.mcp_servers]
        return replace(self, tools=[*self.tools, *chain.from_iterable(listed)], mcp_servers=())

    def __post_init__(self) -> None:
        check_name(self.name, "agent")
        check_pool(self.pool)
        if self.limits.max_cost is not None and self.limits.prices is None:
            raise ConfigurationError(
                f"agent {self.name}: max_cost={self.limits.max_cost} needs prices: add them to its limits"
            )
        call = getattr(self.decide, "__call__", None)  # noqa: B004 - an object may have an async one
        if iscoroutinefunction(self.decide) or iscoroutinefunction(call):
            raise ConfigurationError(
                f"agent {self.name}: decide is an async function; make it a plain one, and await in a tool"
            )
        names = [each.name for each in self.tools]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigurationError(f"agent {self.name}: several tools are named {', '.join(sorted(twice))}")

    def as_tool(self, name: str | None = None, description: str | None = None) -> AgentTool:
        """Make a tool of this agent: each call of it is a run of its own."""
        return AgentTool(name=name or self.name, description=description or self.description, agent=self)

    def tool(self, name: str) -> Tool | AgentTool | None:
        """Find a tool by its name."""
        return next((each for each in self.tools if each.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTool:
    """An agent that another one may call. Its parent waits without a place in a runner."""

    name: str
    description: str
    agent: Agent
    parameters: Mapping[str, Any] = field(default_factory=lambda: CHILD_PARAMETERS)

    def __post_init__(self) -> None:
        check_name(self.name, "tool")


def described(tools: Iterable[Tool | AgentTool]) -> list[dict[str, Any]]:
    """Describe tools as OpenAI's API has it."""
    return [
        {
            "type": "function",
            "function": {
                "name": each.name,
                "description": each.description,
                "parameters": dict(each.parameters),
            },
        }
        for each in tools
    ]


def by_name(agents: Iterable[Agent]) -> dict[str, Agent]:
    """Return agents by their names, with those that they may call.

    Raises:
        ConfigurationError: Two agents have the same name.

    """
    found: dict[str, Agent] = {}
    waiting = list(agents)
    while waiting:
        agent = waiting.pop()
        if found.get(agent.name, agent) is not agent:
            raise ConfigurationError(f"two agents are named {agent.name!r}: rename one")
        if agent.name not in found:
            found[agent.name] = agent
            waiting += [each.agent for each in agent.tools if isinstance(each, AgentTool)]
    return found
