"""A tool with which a model searches an index of documents: that of its run's tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from inferfleet.agents.tool import Tool, ToolContext, tool


def search_tool(
    index: str,
    *,
    k: int = 4,
    where: Mapping[str, Any] | None = None,
    min_score: float = -1.0,
    name: str = "search",
    description: str = "Search the documents. Returns the passages nearest in meaning, the nearest first.",
    **options: Any,
) -> Tool:
    """Make a tool that searches an index, as ``Index.search``; ``options`` are fields of ``Tool``.

    The model chooses only what to search for. It finds only what the tenant of its run has.

    Raises:
        ConfigurationError: An option is invalid.

    """

    async def search(
        context: ToolContext, query: Annotated[str, Field(description="What to look for.")]
    ) -> list[dict[str, Any]]:
        found = context.fleet.index(index, tenant=context.tenant)
        hits = await found.search(query, k=k, where=where, min_score=min_score)
        return [hit.model_dump(exclude={"id"}) for hit in hits]

    return tool(search, name=name, description=description, **{"repeatable": True, **options})
