"""The completion of an answer, made from what was streamed: for engines without a response of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from inferfleet.schemas import Usage
from inferfleet.schemas.journal import AnswerHead, TokenChunk
from inferfleet.schemas.said import text_response
from inferfleet.worker.ports import Completion, Generation


def text_completion(
    generation: Generation,
    chunks: Sequence[TokenChunk],
    *,
    model: str,
    prompt_tokens: int,
    finish_reason: str = "stop",
) -> Completion:
    """Make the last thing that ``Engine.generate`` yields for a chat or completion.

    ``chunks`` are all of the answer's, those that an earlier attempt left (``generation.resume_chunks``) in
    front. What streamed and whole answer say, and the usage, agree by that.
    """
    head = AnswerHead(endpoint=generation.endpoint, model=model, prompt_tokens=prompt_tokens)
    created = int(time.time())  # noqa: TID251 - an engine knows of no Redis
    return Completion(
        response=text_response(generation.id, head, chunks, created=created, finish_reason=finish_reason),
        usage=Usage(
            prompt_tokens=prompt_tokens, completion_tokens=sum(len(chunk.token_ids) for chunk in chunks)
        ),
    )
