"""Servers of the Model Context Protocol, whose tools an agent may call (extra ``mcp``).

Each call has a connection of its own. So a run depends on no connection that its runner has, and a server
that dies or changes its tools spoils one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, cast

from inferfleet.agents.tool import Tool, ToolContext
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.near_match import did_you_mean

if TYPE_CHECKING:
    from mcp.client import Client

LISTING_S: Final = 60.0
"""How long a server may take to start and to list its tools."""


class McpToolError(Exception):
    """The server says that a call has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A server of the Model Context Protocol.

    Either ``url`` is its address (streamable HTTP), or ``command`` starts it, which speaks on stdin and
    stdout; it gets the variables of ``env`` and few others. The names of its tools begin with ``prefix``.
    ``options`` are fields of ``Tool`` for all of them, like ``needs_approval``.
    """

    url: str = ""
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    prefix: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.command):
            raise ConfigurationError("an McpServer has either a url or a command")
        known = {each.name for each in fields(Tool)} - {"name", "description", "parameters", "invoke"}
        for name in self.options.keys() - known:
            raise ConfigurationError(
                f"the MCP server {self.place!r}: options: {name!r} is not an option of a tool"
                f"{did_you_mean(name, known)}; there are {', '.join(sorted(known))}"
            )

    @property
    def place(self) -> str:
        """The address or the program, for messages."""
        return self.url or self.command[0]

    async def tools(self) -> list[Tool]:
        """Ask the server for its tools.

        Raises:
            ConfigurationError: The extra ``mcp`` is not installed, the server does not answer, or a tool has
                a name that no tool may have.

        """
        try:
            async with asyncio.timeout(LISTING_S), self._client() as client:
                page = await client.list_tools()
                found = list(page.tools)
                while page.next_cursor:
                    page = await client.list_tools(cursor=page.next_cursor)
                    found += page.tools
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"the MCP server {self.place!r} does not list its tools ({_reason(error)})"
            ) from error
        return [self._tool(each.name, each.description or "", each.input_schema) for each in found]

    def _tool(self, name: str, description: str, parameters: dict[str, Any]) -> Tool:
        async def invoke(given: dict[str, Any], _: ToolContext) -> str:
            try:
                async with self._client() as client:
                    result = await client.call_tool(name, given)
            except Exception as error:
                raise McpToolError(_reason(error)) from error
            said = "\n".join(
                part.text if part.type == "text" else part.model_dump_json() for part in result.content
            )
            if result.is_error:
                raise McpToolError(said)
            return said

        return Tool(
            name=f"{self.prefix}{name}",
            description=description,
            parameters=parameters,
            invoke=invoke,
            **self.options,
        )

    def _client(self) -> Client:
        try:
            from mcp.client import Client
            from mcp.client.stdio import StdioServerParameters
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"MCP servers need the package {error.name!r}: pip install 'inferfleet[mcp]'"
            ) from error
        if self.url:
            return Client(self.url)
        program, *arguments = self.command
        return Client(StdioServerParameters(command=program, args=arguments, env=dict(self.env)))


def _reason(error: BaseException) -> str:
    """Return what went wrong, without the groups in which anyio wraps it."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return f"{type(error).__name__}: {error}".removesuffix(": ")
