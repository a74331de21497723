"""Every JSON body of the gateway's own API: a misspelt member is refused, wherever it is."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from tests.integration.conftest import PATIENCE_S, StartGateway, StartWorker, chat

from inferfleet.producer import Fleet
from inferfleet.schemas.endpoints import Endpoint

OPENAIS = {*Endpoint, "/v1/responses"}
"""Their bodies are OpenAI's: what they do not have goes on to the engine, or is described by OpenAI."""

FREE = {"/v1/sessions/{session_id}/state"}
"""The body is the caller's own object."""

STRAY = "max_stps"


def places(schema: Mapping[str, Any], types: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Where a body has objects whose members have names; steps lead there from the whole body."""
    while (name := schema.get("$ref")) is not None:
        schema = types[name.rpartition("/")[2]]
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from places(each, types)
    if "properties" in schema:
        yield ()
    members = {**schema.get("properties", {})}
    if isinstance(others := schema.get("additionalProperties"), dict):
        members["any"] = others
    for step, inner in members.items():
        for place in places(inner, types):
            yield (step, *place)


def with_a_stray_member(example: Any, place: tuple[str, ...]) -> Any:
    body = where = copy.deepcopy(example)
    for step in place:
        if not isinstance(where.get(step), dict):
            where[step] = {}
        where = where[step]
    where[STRAY] = 1
    return body


def refusal(place: tuple[str, ...]) -> str:
    """What a message must match: it names the member, or what holds it, if callers may not give that."""
    steps = (*place, STRAY)
    paths = [re.escape(".".join(steps[:end])) for end in range(1, len(steps) + 1)]
    return rf"(?ms)^({'|'.join(paths)}): is not (a member|an option)[^\n]*(there are \w+|leave it out)"


async def test_a_member_that_nobody_would_read_is_refused_and_named_with_those_there_are(
    fleet: Fleet, start_gateway: StartGateway, start_worker: StartWorker, pool: str, tmp_path: Path
) -> None:
    await start_worker()
    gateway = await start_gateway(files_url=str(tmp_path / "files"))
    session = f"{pool}-session"
    await fleet.wait(await fleet.submit(chat(), pool=pool, session_id=session), timeout_s=PATIENCE_S)
    seen: set[str] = set()
    accepted: list[str] = []
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as http:
        document = (await http.get("/openapi.json")).json()
        types = document["components"]["schemas"]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                if content is None or path in OPENAIS | FREE:
                    continue
                url = re.sub(r"{\w+}", "of-nobody", path.replace("{session_id}", session))
                for place in sorted(set(places(content["schema"], types))):
                    what = f"{method} {path} {'.'.join((*place, STRAY))}"
                    seen.add(what)
                    body = with_a_stray_member(content["example"], place)
                    answer = await http.request(method, url, json=body)
                    if answer.status_code != 400 or not re.search(
                        refusal(place), answer.json()["error"]["message"]
                    ):
                        accepted.append(f"{what}: {answer.status_code} {answer.text}")
    assert not accepted, "\n".join(accepted)
    # Some that the document must have, so that none of its kind is overlooked.
    assert seen > {
        "post /v1/jobs retrieve.max_stps",
        "post /v1/jobs retrieve.where.any.max_stps",
        "post /v1/agents/{agent}/runs limits.prices.max_stps",
        "post /v1/sessions/{session_id}/fork max_stps",
        "post /v1/webhook_endpoints max_stps",
        "post /v1/batches inferfleet.max_stps",
    }
