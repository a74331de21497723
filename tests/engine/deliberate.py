"""Where the fleet differs from vLLM's server on purpose, and what it cannot refuse on submit.

``docs/reference/requests.md`` tells users the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from tests.engine.shapes.bodies import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of request. ``shapes`` are patterns of names, ``fields`` those of the sweep.

    With ``stream_decides`` the one difference is that the fleet's response says what vLLM's own stream says,
    with ``prompt_ids_unasked`` that vLLM's stream has the ids of the prompt's tokens.
    """

    what: str
    shapes: tuple[str, ...]
    fields: tuple[str, ...] = ()
    stream_decides: bool = False
    prompt_ids_unasked: bool = False

    def covers(self, shape: Shape) -> bool:
        """Whether this request is of the kind."""
        return any(fnmatchcase(shape.name, pattern) for pattern in self.shapes)


DIFFERENT: Final = (
    Kind(
        what="`use_beam_search: true` is refused",
        shapes=("*: use_beam_search",),
        fields=("use_beam_search",),
    ),
    Kind(
        what="`stream` and `stream_options` have no effect",
        shapes=("*: stream_options without stream",),
        fields=("stream_options",),
    ),
    Kind(
        what="`encoding_format` is `float` or `base64`",
        shapes=("embedding: encoding_format bytes*",),
    ),
    Kind(
        what="A response has the tool calls of its stream",
        shapes=(
            "chat: tool_choice required",
            "chat: tool_choice required of two",
            "chat: tool_choice required cut",
            "chat: tool_choice required cut early",
            "chat: tool_choice named",
            "chat: tool_choice named cut",
            "chat: tool_choice named without a type",
            "chat: parallel_tool_calls false",
            "chat: tools of two choices",
        ),
        stream_decides=True,
    ),
    Kind(
        what="An empty object is not a list",
        shapes=("*: messages user empty object",),
    ),
    Kind(
        what="The bounds of a number of logprobs hold even if vLLM does not use the number",
        shapes=("chat: top_logprobs 21 that nobody asks for", "*: logprob_token_ids in place of *"),
    ),
    Kind(
        what="Integers have 64 bits",
        shapes=("*: top_k past 64 bits",),
    ),
)
"""What the fleet does in another way."""

BY_GATEWAY: Final = (
    Kind(
        what="`service_tier` decides the priority, so an unknown one is refused",
        shapes=("*: service_tier unknown",),
    ),
    Kind(
        what="With `echo`, vLLM's stream has the ids of the prompt's tokens, although nobody asks for them",
        shapes=("completion: echo*", "completion: score *"),
        prompt_ids_unasked=True,
    ),
)
"""What the gateway does in another way than vLLM's server, besides what its fleet does."""

IN_EVENTS: Final = (
    "What only the whole response has, logprobs, the prompt's text and the ids of its tokens, comes with the "
    "last event of its choice, because journals do not have it. vLLM sends it as it comes.",
    "`finish_reason` has an event of its own, as with OpenAI: a journal's tokens do not say that they are "
    "the last. With vLLM it comes with them.",
    "Tokens without text have no event, unless their ids are asked for. vLLM sends an empty one.",
    "A member that is null in vLLM's events may be missing, and the other way round.",
)
"""How the gateway tells the same in other events. ``telling.comparable_events`` forgets just this."""

ONLY_THE_WORKER_KNOWS: Final = (
    Kind(
        what="A token id that is not in the vocabulary",
        shapes=("*out of the vocabulary",),
    ),
    Kind(
        what="A text without tokens",
        shapes=(
            "*: query and documents empty",
            "*: queries and documents empty",
            "* by embeddings: query empty",
            "* by embeddings: queries empty",
            "* by embeddings: documents with an empty one",
        ),
    ),
    Kind(
        what="More tokens than the model's context holds",
        shapes=("*the context", "*: max_tokens huge"),
        fields=(
            "max_completion_tokens",
            "max_tokens",
            "max_tokens_per_doc",
            "max_tokens_per_query",
            "routed_experts_prompt_start",
            "truncate_prompt_tokens",
        ),
    ),
    Kind(
        what="A schema, regular expression or grammar that does not compile",
        shapes=("*: response_format schema that is no schema", "*broken", "*twice the root"),
    ),
    Kind(
        what="A model that the pool does not serve",
        shapes=("*model of somebody else",),
        fields=("model",),
    ),
    Kind(
        what="A feature that this model does not have",
        shapes=(
            "completion: suffix",
            "completion: suffix empty",
            "embedding: dimensions 64",
            "chat: messages parts image",
            "chat: messages parts audio",
            "chat: messages parts video",
            *("*: documents of parts", "*: documents with parts", "*: documents with no parts"),
            *("*: documents with an image", "*: documents with an embedded image"),
            "*: documents with a film",
            *("*: query of parts", "*: queries of parts"),
        ),
        fields=("dimensions", "suffix"),
    ),
    Kind(
        what="A feature that needs an engine argument",
        shapes=(
            "*: thinking_token_budget 3",
            "chat: chat_template of its own",
            "chat: chat_template empty",
            "*: mm_processor_kwargs",
            "chat: media_io_kwargs",
            "completion: prompt_embeds",
        ),
        fields=(
            "chat_template",
            "media_io_kwargs",
            "mm_processor_kwargs",
            "prompt_embeds",
            "thinking_token_budget",
        ),
    ),
)
"""What is accepted, and refused by the worker with ``invalid_request`` or ``prompt_too_long``."""


PROMPT_IDS_UNASKED: Final = tuple(kind for kind in BY_GATEWAY if kind.prompt_ids_unasked)
STREAM_DECIDES: Final = tuple(kind for kind in DIFFERENT if kind.stream_decides)


def among(kinds: tuple[Kind, ...], shape: Shape) -> bool:
    """Whether a request is of one of these kinds."""
    return any(kind.covers(shape) for kind in kinds)
