"""Answers OpenAI's Conversations API: a conversation is a session, whose state has the metadata."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from inferfleet.producer.fleet import Fleet
from inferfleet.producer.openai.api import Reply, json_reply
from inferfleet.producer.openai.refusals import Refusal, RefusedError, bad_request, not_found
from inferfleet.producer.openai.requests import apart, read_model, read_object, unknown_member
from inferfleet.producer.openai.response_fields import Metadata
from inferfleet.producer.openai.response_items import items_of, messages_of, page_of, read_items
from inferfleet.producer.sessions import Session
from inferfleet.producer.tenant_fleet import TenantFleet
from inferfleet.schemas.job import new_job_id
from inferfleet.schemas.problems import kind
from inferfleet.schemas.session import SessionExport, SessionRecord, Turn, estimated_tokens

CONVERSATION_PREFIX: Final = "conv_"

MOST_ITEMS: Final = 20
"""How many items a request may create a conversation with: OpenAI's limit."""

KEPT_S: Final = 30 * 24 * 3600
"""For how long a conversation is kept after its last use."""


class ConversationRequest(BaseModel):
    """The body of a request that creates or changes a conversation."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    metadata: Metadata | None = None


class CreateConversation(ConversationRequest):
    """The body of ``POST /v1/conversations``."""

    items: list[Any] | None = None


Request = TypeVar("Request", bound=ConversationRequest)


class ConversationsApi:
    """Answers requests. All but ``create`` raise ``RefusedError`` for an id that does not exist."""

    def __init__(self, fleet: Fleet | TenantFleet) -> None:
        self._fleet = fleet

    async def create(self, content: bytes) -> Reply:
        """Create a conversation, with items if there are any."""
        asked = await _read(CreateConversation, content)
        conversation_id = f"{CONVERSATION_PREFIX}{new_job_id()}"
        given = asked.items or []
        if len(given) > MOST_ITEMS:
            raise bad_request(
                f"items: has {len(given)} items; at most {MOST_ITEMS} are allowed", param="items"
            )
        turns: tuple[Turn, ...] = ()
        if given:
            messages = messages_of(read_items(given, "items", prefix=conversation_id))
            at = self._fleet.response_records.clock.now()
            turn = Turn(
                job_id=new_job_id(), messages=tuple(messages), at=at, tokens=estimated_tokens(messages)
            )
            turns = (turn,)
        session = self._fleet.session(conversation_id)
        state = {"metadata": asked.metadata or {}}
        await session.import_(SessionExport(id=session.id, turns=turns, state=state, idle_ttl_s=KEPT_S))
        return await self.get(conversation_id)

    async def get(self, conversation_id: str) -> Reply:
        """Read a conversation."""
        session, record = await self._find(conversation_id)
        _, state = await session.state()
        return json_reply(
            {
                "id": conversation_id,
                "object": "conversation",
                "created_at": int(record.created_at.timestamp()) if record.created_at else 0,
                "metadata": _metadata(state),
            }
        )

    async def update(self, conversation_id: str, content: bytes) -> Reply:
        """Replace the metadata of a conversation."""
        asked = await _read(ConversationRequest, content)
        session, _ = await self._find(conversation_id)
        _, state = await session.state()
        _check_can_have_metadata(state)
        # A patch keeps what it does not name.
        await session.patch_state({"metadata": {**dict.fromkeys(_metadata(state)), **(asked.metadata or {})}})
        return await self.get(conversation_id)

    async def delete(self, conversation_id: str) -> Reply:
        """Forget a conversation. Its responses stay."""
        session, _ = await self._find(conversation_id)
        await session.delete()
        return json_reply({"id": conversation_id, "object": "conversation.deleted", "deleted": True})

    async def items(
        self, conversation_id: str, *, after: str | None = None, limit: int = 20, ascending: bool = False
    ) -> Reply:
        """List the items of a conversation, by default from the last to the first."""
        session, _ = await self._find(conversation_id)
        items = items_of(await session.history(), prefix=conversation_id)
        return json_reply(page_of(items, after=after, limit=limit, ascending=ascending))

    async def _find(self, conversation_id: str) -> tuple[Session, SessionRecord]:
        session = self._fleet.session(conversation_id)
        record = await session.get()
        if record is None:
            raise not_found(
                f"there is no conversation {conversation_id[:128]!r}", code="conversation_not_found"
            )
        return session, record


def _check_can_have_metadata(state: object) -> None:
    if not (state is None or isinstance(state, dict)):
        raise RefusedError(
            Refusal(
                status=HTTPStatus.CONFLICT,
                code="state_conflict",
                message=f"the state of this session is {kind(state)}; only an object can have metadata",
            )
        )


def _metadata(state: object) -> dict[str, Any]:
    """Find the metadata in a state, which others may have changed."""
    members = cast("dict[str, Any]", state) if isinstance(state, dict) else {}
    metadata = members.get("metadata")
    return cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}


async def _read(model: type[Request], content: bytes) -> Request:
    body = await apart(partial(read_object, content), content)
    for name in body:
        if name not in model.model_fields:
            raise unknown_member(name, model.model_fields)
    return read_model(model, body)
