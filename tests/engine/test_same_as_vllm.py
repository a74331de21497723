"""Hundreds of requests, each answered by the fleet as vLLM's own server answers it, or refused by both.

What the fleet refuses it refuses on submit, unless only the model can know. Its gateway is asked the same,
and its streams are compared event by event. Where they differ on purpose, ``deliberate.py`` says why.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from tests.engine.conftest import MAX_RUNNING, ON_CPU
from tests.engine.deliberate import (
    BY_GATEWAY,
    DIFFERENT,
    ONLY_THE_WORKER_KNOWS,
    PROMPT_IDS_UNASKED,
    STREAM_DECIDES,
    among,
)
from tests.engine.shapes.bodies import Shape, all_shapes, sweep
from tests.engine.telling import (
    Outcome,
    Telling,
    comparable_events,
    comparable_response,
    differences,
    streamed_by_fleet,
    streamed_by_server,
)
from tests.engine.vllm_server import stream_of_server, vllm_server
from vllm.benchmarks.serve import add_cli_args
from vllm.benchmarks.serve import main_async as benchmark
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest, EmbeddingCompletionRequest
from vllm.entrypoints.pooling.scoring.protocol import (
    RerankRequest,
    ScoreDataRequest,
    ScoreQueriesDocumentsRequest,
    ScoreQueriesItemsRequest,
    ScoreTextRequest,
)
from vllm.utils.argparse_utils import FlexibleArgumentParser

from inferfleet.gateway.server import serving
from inferfleet.gateway.settings import GatewaySettings
from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.producer import Fleet
from inferfleet.schemas import Endpoint, FailureCode, JobState
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.errors import InvalidJobError, WaitTimeoutError
from inferfleet.schemas.heartbeat import WorkerPhase
from inferfleet.schemas.journal import TokensEntry
from inferfleet.schemas.request import check_request
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.worker.worker import Worker

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1200)]

T = TypeVar("T")

PATIENCE_S = 300.0
AT_ONCE = 32
ASKED_AGAIN = 10
BENCHMARKED = 40
SHAPES = all_shapes()
SWEEP = sweep(
    {
        Endpoint.CHAT: set(ChatCompletionRequest.model_fields),
        Endpoint.COMPLETIONS: set(CompletionRequest.model_fields),
        Endpoint.EMBEDDINGS: {*EmbeddingCompletionRequest.model_fields, *EmbeddingChatRequest.model_fields},
        Endpoint.RERANK: set(RerankRequest.model_fields),
        Endpoint.SCORE: {
            *ScoreQueriesDocumentsRequest.model_fields,
            *ScoreQueriesItemsRequest.model_fields,
            *ScoreDataRequest.model_fields,
            *ScoreTextRequest.model_fields,
        },
    },
    but={field for kind in (*DIFFERENT, *ONLY_THE_WORKER_KNOWS) for field in kind.fields},
)

# What a worker's engine arguments come to, as options of the server.
SERVER = ON_CPU | {"max_num_seqs": MAX_RUNNING, "scheduling_policy": "priority", "generation_config": "vllm"}
CHAT_SERVER = SERVER | {
    "enable_prompt_tokens_details": True,
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
}
EMBEDDING_SERVER = SERVER | {"runner": "pooling", "convert": "embed"}

UNASKED = re.compile(r"events\.choices\.\d+\.prompt_token_ids: only theirs has it")

Tellings = dict[str, Telling]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersTelling:
    """What vLLM's servers told, and of the sweep only why they refused, or ``None``."""

    told: Tellings
    swept: list[tuple[Shape, str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTelling:
    """What a fleet told its clients, and what its gateway told."""

    told: Tellings
    through_gateway: Tellings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFleet:
    """A fleet with the pools that ``Shape.model`` names, and its gateway."""

    fleet: Fleet
    gateway_url: str


class Borrowed:
    """An engine that others use as well: a worker neither starts nor stops it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def theirs(tiny_model, tiny_reranker, tmp_path_factory) -> AsyncIterator[asyncio.Task[ServersTelling]]:
    """What vLLM's servers tell; there is one for each kind of model."""
    logs = tmp_path_factory.mktemp("vllm-server")
    kinds = {
        "generates": (tiny_model, CHAT_SERVER),
        "embeds": (tiny_model, EMBEDDING_SERVER),
        "ranks": (tiny_reranker, SERVER),
    }

    async def ask_all() -> ServersTelling:
        async with AsyncExitStack() as stack:
            clients = await asyncio.gather(
                *(
                    stack.enter_async_context(vllm_server(model, arguments, log=logs / kind))
                    for kind, (model, arguments) in kinds.items()
                )
            )
            servers = dict(zip(kinds, clients, strict=True))
            told = await _all([(shape, _told_by_server(servers[shape.model], shape)) for shape in SHAPES])
            swept = await _all([(shape, _refused(servers[shape.model], shape)) for shape in SWEEP])
            return ServersTelling(told=told, swept=[(shape, swept[shape.name]) for shape in SWEEP])

    # It goes on while the engines of the fleet load.
    asking = asyncio.create_task(ask_all())
    yield asking
    asking.cancel()
    await asyncio.wait([asking])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running_fleet(theirs, engine, make_engine, tiny_reranker) -> AsyncIterator[RunningFleet]:
    """A real queue, a worker for each kind of engine, and a gateway."""
    with running_services(ServicesChoice.EMBEDDED) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        async with (
            make_engine(runner="pooling", convert="embed") as embedder,
            make_engine(model=tiny_reranker) as reranker,
        ):
            engines = {"generates": engine, "embeds": embedder, "ranks": reranker}
            workers = [
                Worker(
                    settings=WorkerSettings(
                        **urls,
                        pool=pool,
                        engine="vllm",
                        max_running=MAX_RUNNING,
                        http_host="127.0.0.1",
                        http_port=0,
                        drain_timeout_s=0,
                    ),
                    engine=Borrowed(one),
                )
                for pool, one in engines.items()
            ]
            running = [asyncio.create_task(worker.run()) for worker in workers]
            gateway = GatewaySettings(**urls, pool="generates", http_port=0, drain_timeout_s=0)
            async with Fleet.connect(ProducerSettings(**urls)) as fleet, serving(gateway) as port:
                while {one.phase for one in await fleet.workers()} != {WorkerPhase.READY}:
                    await asyncio.sleep(0.1)
                for pool in engines:
                    await fleet.declare_pool(pool)
                yield RunningFleet(fleet=fleet, gateway_url=f"http://127.0.0.1:{port}")
            for worker in workers:
                worker.stop()
            await asyncio.gather(*running)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ours(running_fleet) -> FleetTelling:
    """What the fleet tells."""
    told = await _all([(shape, _told_by_fleet(running_fleet.fleet, shape)) for shape in SHAPES])
    async with AsyncExitStack() as stack:
        clients = {
            pool: await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=running_fleet.gateway_url,
                    headers={"Inferfleet-Pool": pool},
                    timeout=PATIENCE_S,
                )
            )
            for pool in {shape.model for shape in SHAPES}
        }
        through_gateway = await _all(
            [(shape, _told_over_http(clients[shape.model], shape)) for shape in SHAPES]
        )
    return FleetTelling(told=told, through_gateway=through_gateway)


async def _all(asked: list[tuple[Shape, Awaitable[T]]]) -> dict[str, T]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(telling: Awaitable[T]) -> T:
        async with slots:
            return await telling

    told: dict[str, T] = {}
    # vLLM 0.32 mixes up the logprobs in a batch if one of its requests names the tokens that it wants.
    for named in (False, True):
        part = [pair for pair in asked if ("logprob_token_ids" in pair[0].body) is named]
        answers = await asyncio.gather(*(ask(telling) for _, telling in part))
        told |= {shape.name: answer for (shape, _), answer in zip(part, answers, strict=True)}
    return told


async def _refused(client: httpx.AsyncClient, shape: Shape) -> str | None:
    response = await client.post(shape.endpoint, json=shape.body)
    return None if response.is_success else response.text


async def _told_by_server(client: httpx.AsyncClient, shape: Shape) -> Telling:
    # If a busy vLLM streams several tokens at once, it may add "{}" to the arguments of a call that is over.
    for _ in range(ASKED_AGAIN):
        told = await _told_over_http(client, shape)
        calls = [call for choice in (told.streamed or {}).values() for call in choice.calls.values()]
        if not any(call["arguments"].endswith("}{}") for call in calls):
            break
    return told


async def _told_over_http(client: httpx.AsyncClient, shape: Shape) -> Telling:
    body = shape.body
    asks_for_stream = body.get("stream") is True
    streams = ENDPOINTS[shape.endpoint].generated is not None
    if asks_for_stream and streams:
        # The result of a job is that of a request without a stream.
        body = {name: value for name, value in body.items() if name not in {"stream", "stream_options"}}
    response = await client.post(shape.endpoint, json=body)
    if not response.is_success:
        outcome = Outcome.REFUSED if response.is_client_error else Outcome.FAILED
        return Telling(outcome=outcome, words=response.text)
    streamed = events = None
    if streams:
        events = await stream_of_server(client, shape.endpoint, shape.body)
        if events is None and asks_for_stream:
            return Telling(outcome=Outcome.REFUSED, words="the stream is refused")
        streamed = None if events is None else streamed_by_server(events)
    if response.headers["content-type"] != "application/json":
        return Telling(outcome=Outcome.ANSWERED, words=response.headers["content-type"])
    return Telling(outcome=Outcome.ANSWERED, response=response.json(), streamed=streamed, events=events)


async def _told_by_fleet(fleet: Fleet, shape: Shape) -> Telling:
    try:
        job = await fleet.submit(shape.body, endpoint=shape.endpoint, pool=shape.model, tenant=str(uuid4()))
    except InvalidJobError as error:
        return Telling(outcome=Outcome.REFUSED, words=str(error))
    try:
        result = await fleet.wait(job, timeout_s=PATIENCE_S)
    except WaitTimeoutError as error:
        return Telling(outcome=Outcome.FAILED, words=f"{error}; {await fleet.get(job)!r}")
    if result.state is not JobState.SUCCEEDED:
        assert result.error is not None
        final = result.error.code in {FailureCode.INVALID_REQUEST, FailureCode.PROMPT_TOO_LONG}
        return Telling(outcome=Outcome.REFUSED_LATE if final else Outcome.FAILED, words=result.error.message)
    chunks = [
        chunk
        async for line in fleet.stream(job)
        if isinstance(line.entry, TokensEntry)
        for chunk in line.entry.chunks
    ]
    return Telling(outcome=Outcome.ANSWERED, response=result.response, streamed=streamed_by_fleet(chunks))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_request_is_answered_or_refused_as_vllm_does_it(shape, ours, theirs):
    their = (await theirs).told[shape.name]
    refused = Outcome.REFUSED_LATE if among(ONLY_THE_WORKER_KNOWS, shape) else Outcome.REFUSED
    found = _compare(ours.told[shape.name], their, refused=refused)

    if among(DIFFERENT, shape):
        assert found, "does not differ any more: take it off the list"
        told = ours.told[shape.name]
        found = _compare(told, their.as_streamed(), refused=refused) if among(STREAM_DECIDES, shape) else []
    assert not found, "\n".join(found)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_a_request_through_the_gateway_is_answered_or_refused_as_vllm_does_it(shape, ours, theirs):
    told, their = ours.through_gateway[shape.name], (await theirs).told[shape.name]
    if among(STREAM_DECIDES, shape):
        their = their.as_streamed()
    found = _compare(told, their, refused=Outcome.REFUSED)
    if told.events is not None and their.events is not None:
        found += differences(comparable_events(told.events), comparable_events(their.events), "events")

    if among(PROMPT_IDS_UNASKED, shape):
        found = [line for line in found if not UNASKED.fullmatch(line)]
    elif among((*DIFFERENT, *BY_GATEWAY), shape) and not among(STREAM_DECIDES, shape):
        assert found, "does not differ any more: take it off the list"
        found = []
    assert not found, "\n".join(found)


async def test_every_field_is_judged_on_submit_as_vllm_judges_it(theirs):
    """Values of all types in each field that vLLM knows; what only a worker knows is not asked for."""
    unexplained = []
    for shape, refused in (await theirs).swept:
        try:
            check_request(shape.endpoint, shape.body, max_body_bytes=1_000_000)
        except InvalidJobError as error:
            if not refused:
                unexplained.append(f"{shape.name}: vLLM answers; ours: {error}")
        else:
            if refused:
                unexplained.append(f"{shape.name}: ours takes it; vLLM: {refused:.300}")
    assert not unexplained, "\n".join(unexplained)


@pytest.mark.parametrize("backend", ["openai-chat", "openai"])
async def test_no_request_of_vllms_own_benchmark_fails(backend, running_fleet, tiny_model):
    endpoint = {"openai-chat": Endpoint.CHAT, "openai": Endpoint.COMPLETIONS}[backend]
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    arguments = parser.parse_args(
        f"--backend {backend} --base-url {running_fleet.gateway_url} --endpoint {endpoint} --model tiny "
        f"--tokenizer {tiny_model} --dataset-name random --random-input-len 20 --random-output-len 10 "
        f"--num-prompts {BENCHMARKED} --max-concurrency 16 --ignore-eos".split()
    )

    told = await benchmark(arguments)

    assert (told["completed"], told["failed"]) == (BENCHMARKED, 0)
    assert told["total_output_tokens"] == BENCHMARKED * 10


def _compare(ours: Telling, theirs: Telling, *, refused: Outcome) -> list[str]:
    if theirs.outcome is not Outcome.ANSWERED and ours.outcome is refused:
        return []
    if ours.outcome is not Outcome.ANSWERED or theirs.outcome is not Outcome.ANSWERED:
        return [
            f"ours is {ours.outcome}: {ours.words:.300}",
            f"theirs is {theirs.outcome}: {theirs.words:.300}",
        ]
    if theirs.response is None:
        return [f"theirs is {theirs.words}, ours is JSON"]
    assert ours.response is not None
    found = differences(comparable_response(ours.response), comparable_response(theirs.response), "response")
    if theirs.streamed is not None:
        assert ours.streamed is not None
        found += differences(_comparable(ours), _comparable(theirs), "stream")
    return found


def _comparable(telling: Telling) -> dict[str, Any]:
    assert telling.streamed is not None
    return {str(index): streamed.comparable() for index, streamed in telling.streamed.items()}
