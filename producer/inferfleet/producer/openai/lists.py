"""A page of a list, in the form in which OpenAI's SDKs read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def list_page(data: Sequence[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """Make a page of objects that have ids. ``more`` says whether others follow it."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }
