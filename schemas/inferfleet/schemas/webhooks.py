"""The events of webhooks: their types, and one event as a gateway sends it."""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

EVENT_TYPES: Final = (
    "agent.run.cancelled",
    "agent.run.failed",
    "agent.run.succeeded",
    "agent.run.waiting",
    "batch.cancelled",
    "batch.completed",
    "batch.expired",
    "batch.failed",
    "job.cancelled",
    "job.expired",
    "job.failed",
    "job.succeeded",
    "response.cancelled",
    "response.completed",
    "response.failed",
    "response.incomplete",
    "rollout.aborted",
    "rollout.promoted",
)
"""The types of events: OpenAI's for batches and responses, and ours for runs of agents, jobs and rollouts."""

_REPEATED: Final = ("rollout.aborted", "rollout.promoted")


class WebhookEvent(NamedTuple):
    """Something that has ended: ``object_id`` is its id, and ``at_s`` when, in Unix seconds.

    What ends once has one event, so the id of the event comes from the object's. A rollout is known by its
    pool, which has one after the other. A run waits several times: ``question`` is the newest that it asks.
    """

    type: str
    object_id: str
    at_s: int
    question: str = ""

    @property
    def id(self) -> str:
        """The id of the event, the same in each delivery, so that receivers recognize repetitions."""
        if self.question:
            return f"evt_{self.type}_{self.object_id}_{self.question}"
        if self.type in _REPEATED:
            return f"evt_{self.type}_{self.object_id}_{self.at_s}"
        return f"evt_{self.object_id}"

    def payload(self) -> bytes:
        """Make the body of its deliveries, the same bytes each time."""
        data = {"id": self.object_id}
        return orjson.dumps({"id": self.id, "type": self.type, "created_at": self.at_s, "data": data})
