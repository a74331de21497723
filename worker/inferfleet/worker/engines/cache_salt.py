"""The salt that keeps the prefix caches of tenants apart in vLLM."""

from __future__ import annotations

import hashlib

import orjson

from inferfleet.worker.ports import Generation


def cache_salt(generation: Generation) -> str:
    """Give each tenant its own prefix cache, divided further by the caller's salt."""
    source = orjson.dumps([generation.tenant, generation.body.get("cache_salt")])
    return hashlib.sha256(source).hexdigest()
