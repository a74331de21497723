"""Makes the completion of an answer from its chunks, for engines without a response of their own."""

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
    """Make the ``Completion`` that ``Engine.generate`` yields at the end of a chat or completion.

    ``chunks`` are all chunks of the answer, beginning with those of earlier attempts
    (``generation.resume_chunks``). So the streamed answer, the response and the usage agree.
    """
    head = AnswerHead(endpoint=generation.endpoint, model=model, prompt_tokens=prompt_tokens)
    created = int(time.time())  # noqa: TID251 - an engine knows of no Redis
    return Completion(
        response=text_response(generation.id, head, chunks, created=created, finish_reason=finish_reason),
        usage=Usage(
            prompt_tokens=prompt_tokens, completion_tokens=sum(len(chunk.token_ids) for chunk in chunks)
        ),
    )
