"""Agents: durable loops of model and tools, on top of the client.

    agent       an agent, and an agent as a tool of another one
    tool        a function as a tool
    search      a tool that searches an index of documents
    mcp_servers servers of the Model Context Protocol, whose tools an agent may call
    runs        the client: start runs, wait for them, answer what they ask
    tenant_runs the same for one tenant
    events      telling webhooks of runs
    history     what the steps of a run say, and what to do next
    run_loop    bringing one run forward
    calls       making its tool calls
    held_run    its steps and its lease
    ending      ending it
    runner      the process: taking runs from the queue
    http        its port for health and metrics
    metrics     its metrics
    sweep       publishing runs again that have lost their messages
    settings    the settings of a runner
    loading     finding the agents that a command line names

A run belongs to no process: its steps are in Redis, and any runner goes on with it.
"""

from __future__ import annotations

from inferfleet.agents.agent import Agent, AgentTool, Decision
from inferfleet.agents.mcp_servers import McpServer
from inferfleet.agents.runs import AgentRuns, Question
from inferfleet.agents.search import search_tool
from inferfleet.agents.tool import Tool, ToolContext, tool
from inferfleet.schemas.prices import Prices
from inferfleet.schemas.run import RunLimits

__all__ = [
    "Agent",
    "AgentRuns",
    "AgentTool",
    "Decision",
    "McpServer",
    "Prices",
    "Question",
    "RunLimits",
    "Tool",
    "ToolContext",
    "search_tool",
    "tool",
]
