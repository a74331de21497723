"""The names of spans and of their attributes: OpenTelemetry's conventions for GenAI and messaging, and ours.

None of these conventions is stable. They stand here alone, with the version that is meant, so that a newer
version is one change. https://github.com/open-telemetry/semantic-conventions-genai,
https://opentelemetry.io/docs/specs/semconv/messaging/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inferfleet.schemas.endpoints import Endpoint

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/gen-ai/1.42.0"
"""The version of the conventions for GenAI. Those for messaging are of core version 1.44.0."""

SCOPE: Final = "inferfleet"
"""The instrumentation scope of all our spans."""

# Spans, besides those of attempts, which are named ``{operation} {model}``.

SEND: Final = "send"
"""Followed by the queue, if it is one."""
QUEUE: Final = "queue"
HYDRATE: Final = "hydrate"
PREFILL: Final = "prefill"
DECODE: Final = "decode"
COMMIT: Final = "commit"
RETRIEVAL: Final = "retrieval"
"""Followed by the index."""
WEBHOOK: Final = "webhook"
INVOKE_AGENT: Final = "invoke_agent"
"""Followed by the agent."""

# Of any span

ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_RESEND_COUNT: Final = "http.request.resend_count"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS_CODE: Final = "http.response.status_code"
SERVER_ADDRESS: Final = "server.address"

# GenAI

AGENT_NAME: Final = "gen_ai.agent.name"
DATA_SOURCE_ID: Final = "gen_ai.data_source.id"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"

REQUEST_NUMBERS: Final[Mapping[str, str]] = {
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "temperature": "gen_ai.request.temperature",
    "top_k": "gen_ai.request.top_k",
    "top_p": "gen_ai.request.top_p",
}
"""The attribute of each number in a request."""

OPERATIONS: Final[Mapping[Endpoint, str]] = {
    Endpoint.CHAT: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.EMBEDDINGS: "embeddings",
    Endpoint.RERANK: "rerank",
    Endpoint.SCORE: "score",
}
"""The operation of each endpoint. The conventions have no names for the last two."""

# Messaging

BATCH_MESSAGE_COUNT: Final = "messaging.batch.message_count"
DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_SYSTEM: Final = "messaging.system"

# Ours

JOB_ID: Final = "inferfleet.job.id"
ATTEMPT: Final = "inferfleet.attempt"
POOL: Final = "inferfleet.pool"
PRIORITY: Final = "inferfleet.priority"
TENANT: Final = "inferfleet.tenant"
WORKER_ID: Final = "inferfleet.worker.id"
RESUMED_FROM: Final = "inferfleet.resumed_from"
"""After how many tokens of earlier attempts an attempt has resumed the answer."""
RUN_ID: Final = "inferfleet.run.id"
RUN_STATE: Final = "inferfleet.run.state"
RUN_STEPS: Final = "inferfleet.run.steps"
RUN_TOKENS: Final = "inferfleet.run.tokens"
RUN_COST: Final = "inferfleet.run.cost"
RUN_REPLAYS: Final = "inferfleet.run.replays"
"""The run that is replayed."""
HITS: Final = "inferfleet.retrieval.hits"
JOB_STATE: Final = "inferfleet.job.state"
"""The state in which an attempt has left its job."""
WEBHOOK_EVENT: Final = "inferfleet.webhook.event"
LINK: Final = "inferfleet.link"
"""On a link: what it leads to."""
LINK_ATTEMPT: Final = "previous_attempt"
LINK_TURN: Final = "previous_turn"

WORKER_LOST: Final = "worker_lost"
"""The ``error.type`` of an attempt that was lost, as when its worker died."""
