"""The OpenAI response bodies of the simulated engine, and what a test should expect of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from inferfleet.schemas import Endpoint, Usage
from inferfleet.schemas.said import Said
from inferfleet.worker.engines.simulated.answer import Answer, AnswerCutter, plan_answers, require_room
from inferfleet.worker.engines.simulated.embedding import as_base64, unit_vector
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.refusal import refusal
from inferfleet.worker.engines.simulated.request import SimulatedRequest, read_request
from inferfleet.worker.ports import Completion

_DEFAULTS: Final = SimulatedParameters()


def expected_text(
    endpoint: Endpoint, body: Mapping[str, Any], *, parameters: SimulatedParameters = _DEFAULTS
) -> str:
    """Return the text of the first choice that the engine gives to a chat or completions body.

    Raises:
        GenerationError: The engine refuses the body.

    """
    request = read_request(endpoint, body)
    answers = plan_answers(request, max_model_len=parameters.max_model_len, weights=parameters.weights)
    return answers[0].echoed + answers[0].text


def expected_response(
    endpoint: Endpoint,
    body: Mapping[str, Any],
    *,
    job_id: str,
    model: str,
    created: int,
    parameters: SimulatedParameters = _DEFAULTS,
) -> dict[str, Any]:
    """Return the whole response body that a job gets. ``created`` is in Unix seconds.

    Raises:
        GenerationError: The engine refuses the body.

    """
    request = read_request(endpoint, body)
    if endpoint is Endpoint.EMBEDDINGS:
        return embeddings_completion(request, model=model, parameters=parameters).response
    answers = plan_answers(request, max_model_len=parameters.max_model_len, weights=parameters.weights)
    return text_completion(request, answers, job_id=job_id, model=model, created=created).response


def text_completion(
    request: SimulatedRequest, answers: Sequence[Answer], *, job_id: str, model: str, created: int
) -> Completion:
    """Build the response to a chat or completions request.

    A prompt counts once in ``usage``, however many choices it has. Nothing is ever cached.
    """
    usage = Usage(
        prompt_tokens=request.prompt_tokens,
        completion_tokens=sum(len(answer.token_ids) for answer in answers),
    )
    chat = request.endpoint is Endpoint.CHAT
    response: dict[str, Any] = {
        "id": f"chatcmpl-{job_id}" if chat else f"cmpl-{job_id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": index,
                **({"message": said.message()} if chat else {"text": said.text}),
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, (answer, said) in enumerate(zip(answers, map(_streamed, answers), strict=True))
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
    }
    return Completion(response=response, usage=usage)


def embeddings_completion(
    request: SimulatedRequest, *, model: str, parameters: SimulatedParameters
) -> Completion:
    """Build the response to an embeddings request.

    Raises:
        GenerationError: A text is too long, or more dimensions are wanted than there are.

    """
    require_room(request, max_model_len=parameters.max_model_len)
    dimensions = request.dimensions or parameters.embedding_dimensions
    if dimensions > parameters.embedding_dimensions:
        raise refusal(f"dimensions: {dimensions} asked for, the model has {parameters.embedding_dimensions}")
    vectors = [unit_vector(prompt, dimensions) for prompt in request.prompts]
    usage = Usage(prompt_tokens=request.prompt_tokens)
    response: dict[str, Any] = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": as_base64(vector) if request.base64 else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens},
    }
    return Completion(response=response, usage=usage)


def _streamed(answer: Answer) -> Said:
    """Put together what the stream of an answer says from its beginning."""
    whole = replace(answer, resumed=0)
    return Said([AnswerCutter(whole, index=0).cut(len(whole.token_ids))])
