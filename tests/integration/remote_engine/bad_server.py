"""A server that answers well until a test tells it to answer badly, and engines that ask such servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Literal

import orjson
from aiohttp import web
from tests.patience import PATIENCE_S

from inferfleet.schemas import Endpoint
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.worker.engines.openai.engine import OpenaiEngine
from inferfleet.worker.ports import Completion, Generation

MODEL = "some-model"

Answer = Callable[[str, dict[str, Any]], Awaitable[web.StreamResponse | None]]

PIECES: Mapping[Endpoint, dict[str, Any]] = {
    Endpoint.EMBEDDINGS: {"data": [{"index": 0, "embedding": [1.0, 2.0]}]},
    Endpoint.RERANK: {
        "results": [{"index": 0, "relevance_score": 1.0}, {"index": 1, "relevance_score": 0.5}]
    },
    Endpoint.SCORE: {"data": [{"index": 0, "score": 1.0}]},
}
"""The good answers of the endpoints that do not generate."""


class BadServer:
    """A server that answers well, unless ``answer`` says something else. ``vllm`` makes it one of vLLM.

    It answers chats, and what it ``offers`` besides.
    """

    def __init__(
        self,
        *,
        vllm: bool = False,
        chats: bool = True,
        completions: bool = False,
        offers: Collection[Endpoint] = (),
    ) -> None:
        self.vllm = vllm
        self.offers = {*offers}
        if chats:
            self.offers.add(Endpoint.CHAT)
        if completions:
            self.offers.add(Endpoint.COMPLETIONS)
        self.fingerprint = "vllm-one"
        self.said = "hello there"
        self.asked: list[dict[str, Any]] = []
        self.url = ""
        self.answer: Answer = self.nothing
        self.probes = 0
        """How many requests it has answered that want no stream."""
        self.events: list[Any] | None = None
        """What its streams consist of, if it is not what they should."""
        self.at_the_end: Literal["done", "silence", "reset"] = "done"
        """How its streams end."""
        self.ends = asyncio.Event()
        """Set, silence ends."""
        self.model: str | None = MODEL
        """The model that it lists, if it lists one."""
        self.listing = 200
        """The status of the list of models."""
        self.listed = asyncio.Semaphore(0)
        """Released each time that the models are listed."""
        self.answers = asyncio.Event()
        """Cleared, the server hangs: it accepts connections, and says nothing."""
        self.answers.set()

    async def nothing(self, path: str, body: dict[str, Any]) -> web.StreamResponse | None:
        return None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[BadServer]:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{path:.*}", self._post)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            yield self
        finally:
            self.answers.set()
            self.ends.set()
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        await self.answers.wait()
        self.listed.release()
        if self.listing != 200:
            return web.json_response({}, status=self.listing)
        if self.model is None:
            return web.json_response({"data": []})
        entry = {"id": self.model, "root": "/model", "max_model_len": 100}
        return web.json_response({"data": [entry | ({"owned_by": "vllm"} if self.vllm else {})]})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        await self.answers.wait()
        other = await self.answer(request.path, body)
        if other is not None:
            return other
        if request.path == "/tokenize" and self.vllm:
            return web.json_response({"tokens": [1, 2, 3]})
        if request.path not in self.offers:
            return web.json_response({"error": {"message": "not here"}}, status=404)
        if body.get("stream"):
            self.asked.append(body)
        else:
            self.probes += 1
        if request.path in PIECES:
            return web.json_response(PIECES[Endpoint(request.path)] | {"usage": {"prompt_tokens": 2}})
        chat = request.path == Endpoint.CHAT
        end = {"index": 0, "finish_reason": "stop"}
        counts = {"prompt_tokens": 2, "completion_tokens": 1}
        head = {"id": "a", "created": 1, "model": MODEL}
        last = head | {"usage": counts} | ({"system_fingerprint": self.fingerprint} if self.vllm else {})
        if not body.get("stream"):
            words = {"message": {"role": "assistant", "content": self.said}} if chat else {"text": self.said}
            return web.json_response(last | {"choices": [end | words]})
        words = {"delta": {"role": "assistant", "content": self.said}} if chat else {"text": self.said}
        ids = {"token_ids": [7]} if self.vllm else {}
        events: list[dict[str, Any]] = [
            head | {"prompt_token_ids": [1, 2], "choices": [end | words | ids]},
            last | {"choices": []},
        ]
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for event in events if self.events is None else self.events:
            await stream.write(b"data: " + orjson.dumps(event) + b"\n\n")
        match self.at_the_end:
            case "done":
                await stream.write(b"data: [DONE]\n\n")
            case "silence":
                await self.ends.wait()
            case "reset":
                assert request.transport is not None
                request.transport.close()
        return stream


@asynccontextmanager
async def engine_on(*servers: BadServer, **engine_args: Any) -> AsyncGenerator[OpenaiEngine]:
    engine = OpenaiEngine(
        urls=[server.url for server in servers], model=MODEL, max_running=8, engine_args=engine_args
    )
    try:
        yield engine
    finally:
        await engine.stop()


@asynccontextmanager
async def started_on(*servers: BadServer, **engine_args: Any) -> AsyncGenerator[OpenaiEngine]:
    async with engine_on(*servers, **engine_args) as engine:
        await engine.start()
        yield engine


async def ask(
    engine: OpenaiEngine,
    endpoint: Endpoint = Endpoint.CHAT,
    body: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Completion:
    body = body or ENDPOINTS[endpoint].example
    generation = Generation(id="job", endpoint=endpoint, body=body, priority=4, **fields)
    found: Completion | None = None
    async with asyncio.timeout(PATIENCE_S), aclosing(engine.generate(generation)) as events:
        async for event in events:
            if isinstance(event, Completion):
                found = event
    assert found is not None
    return found


def saying(
    status: int,
    *,
    times: int = 1,
    headers: Mapping[str, str] = {},
    words: str = "no",
    streamed: bool = True,
    path: str = "",
) -> Answer:
    """Answer requests this way, so many times. At first only streams, which are the jobs."""
    left = times

    async def answer(asked: str, body: dict[str, Any]) -> web.StreamResponse | None:
        nonlocal left
        if not left or (streamed and not body.get("stream")) or not asked.endswith(path):
            return None
        left -= 1
        return web.json_response({"error": {"message": words}}, status=status, headers=headers)

    return answer
