"""The response bodies of the simulated engine, and what a test should expect of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final

from inferfleet.schemas import Endpoint, Usage
from inferfleet.schemas.endpoints import ENDPOINTS
from inferfleet.schemas.said import Said
from inferfleet.worker.engines.simulated.answer import Answer, AnswerCutter, plan_answers
from inferfleet.worker.engines.simulated.embedding import as_base64, unit_vector
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters
from inferfleet.worker.engines.simulated.refusal import refusal
from inferfleet.worker.engines.simulated.request import SimulatedRequest, read_request
from inferfleet.worker.engines.simulated.scoring import score
from inferfleet.worker.ports import Completion

_DEFAULTS: Final = SimulatedParameters()


def expected_text(
    endpoint: Endpoint, body: Mapping[str, Any], *, parameters: SimulatedParameters = _DEFAULTS
) -> str:
    """Return the text of the engine's first choice for a chat or completion body.

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
    answers = plan_answers(request, max_model_len=parameters.max_model_len, weights=parameters.weights)
    return completion_of(
        request, answers, job_id=job_id, model=model, created=created, parameters=parameters
    ).response


def completion_of(
    request: SimulatedRequest,
    answers: Sequence[Answer],
    *,
    job_id: str,
    model: str,
    created: int,
    parameters: SimulatedParameters,
) -> Completion:
    """Make the response to any request.

    ``usage`` counts a prompt once, however many choices it has, and no cached tokens.

    Raises:
        GenerationError: The request wants more dimensions than there are.

    """
    usage = Usage(
        prompt_tokens=request.prompt_tokens,
        completion_tokens=sum(len(answer.token_ids) for answer in answers),
    )
    counted: dict[str, Any] = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
    match request.endpoint:
        case Endpoint.CHAT | Endpoint.COMPLETIONS:
            answered = _text(request.endpoint, answers, job_id=job_id, created=created)
            counted["completion_tokens"] = usage.completion_tokens
            counted["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
        case Endpoint.EMBEDDINGS:
            answered = _embeddings(request, most_dimensions=parameters.embedding_dimensions)
        case Endpoint.RERANK:
            answered = {"id": f"score-{job_id}", "results": _ranking(request)}
        case Endpoint.SCORE:
            answered = {
                "id": f"score-{job_id}",
                "object": "list",
                "created": created,
                "data": [
                    {"index": index, "object": "score", "score": score(pair)}
                    for index, pair in enumerate(request.prompts)
                ],
            }
    return Completion(response={"model": model, **answered, "usage": counted}, usage=usage)


def with_cached_tokens(completion: Completion, tokens: int) -> Completion:
    """Return the response to a chat of whose prompt so many tokens came from the prefix cache."""
    usage = completion.usage.model_copy(update={"cached_tokens": tokens})
    counted = {**completion.response["usage"], "prompt_tokens_details": {"cached_tokens": tokens}}
    return Completion(response={**completion.response, "usage": counted}, usage=usage)


def _text(endpoint: Endpoint, answers: Sequence[Answer], *, job_id: str, created: int) -> dict[str, Any]:
    answer_of = ENDPOINTS[endpoint].generated
    assert answer_of is not None  # noqa: S101 - its answers are text
    return {
        "id": f"{answer_of.id_prefix}-{job_id}",
        "object": answer_of.object,
        "created": created,
        "choices": [
            {
                "index": index,
                **answer_of.choice(_streamed(answer)),
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ],
    }


def _embeddings(request: SimulatedRequest, *, most_dimensions: int) -> dict[str, Any]:
    dimensions = request.dimensions or most_dimensions
    if dimensions > most_dimensions:
        raise refusal(f"dimensions: {dimensions} asked for, the model has {most_dimensions}")
    vectors = [unit_vector(prompt, dimensions) for prompt in request.prompts]
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": as_base64(vector) if request.base64 else vector,
            }
            for index, vector in enumerate(vectors)
        ],
    }


def _ranking(request: SimulatedRequest) -> list[dict[str, Any]]:
    """Return the best documents, the best one first."""
    results = [
        {
            "index": index,
            "document": {"text": document, "multi_modal": None},
            "relevance_score": score(pair),
        }
        for index, (document, pair) in enumerate(zip(request.documents, request.prompts, strict=True))
    ]
    return sorted(results, key=itemgetter("relevance_score"), reverse=True)[: request.top_n]


def _streamed(answer: Answer) -> Said:
    """Put the whole stream of an answer together."""
    whole = replace(answer, resumed=0)
    return Said([AnswerCutter(whole, index=0).cut(len(whole.token_ids))])
