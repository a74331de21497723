"""The bodies of chats and completions, as vLLM accepts them.

A body that vLLM 0.32 answers passes, even if OpenAI's API description (``openapi.yaml`` in
openai/openai-openapi) allows less. A body that vLLM always refuses is refused, as far as the body alone shows
it. ``make test-engine`` compares both. If an engine argument can move a limit, this module applies vLLM's
default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    with_config,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from inferfleet.schemas.openai_fields import (
    BODY_CONFIG,
    TEXT_OR_TOKENS,
    CacheSalt,
    NonEmpty,
    Signed64,
    TokenId,
    Tokens,
    TruncatedTo,
)
from inferfleet.schemas.openai_messages import AlsoAs, Flag, Message, Number, Whole, text_or_list
from inferfleet.schemas.problems import WRONG_SHAPE, disagreement
from inferfleet.schemas.structured_outputs import (
    ResponseFormat,
    StructuredOutputs,
    constraint_of_format,
    constraint_of_outputs,
)

MOST_STOP_STRINGS = 4
"""OpenAI's limit, and vLLM's unless VLLM_MAX_STOP_STRINGS raises it."""

MOST_LOGPROBS = 20
"""OpenAI's limit for chats, and vLLM's for all unless its argument ``max_logprobs`` raises it."""

MOST_CHOICES = 16_384
MOST_PROMPTS = 1024
"""vLLM's, unless VLLM_MAX_N_SEQUENCES or VLLM_MAX_COMPLETION_PROMPTS raises them."""

DEFAULT_COMPLETION_TOKENS = 16
"""A completion's ``max_tokens`` if the body has none."""

Penalty: TypeAlias = Annotated[Number, Field(ge=-2, le=2)]


def _token_id(key: str) -> str:
    # vLLM reads it with int().
    try:
        known = int(key) >= 0
    except ValueError:
        known = False
    if not known:
        raise PydanticCustomError("no_token_id", "must be a token id, such as 50256")
    return key


def _no_text(value: Any) -> Any:
    if isinstance(value, str):
        raise PydanticCustomError(WRONG_SHAPE, "must be a whole number")
    return value


Logprobs: TypeAlias = Annotated[
    int, Field(ge=0, le=MOST_LOGPROBS), AlsoAs(("boolean",)), BeforeValidator(_no_text)
]
"""A number of logprobs: the one kind of number that vLLM does not read from a string."""


Prompts: TypeAlias = Annotated[
    Annotated[NonEmpty, Tag("text")]
    | Annotated[list[NonEmpty], Field(min_length=1, max_length=MOST_PROMPTS), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS), Tag("token lists")],
    TEXT_OR_TOKENS,
]
"""One prompt or several."""

Stop: TypeAlias = Annotated[
    Annotated[NonEmpty, Tag("text")]
    | Annotated[list[NonEmpty], Field(max_length=MOST_STOP_STRINGS), Tag("list")],
    text_or_list("a string or a list of strings"),
]


class StreamOptions(TypedDict, total=False):
    """Options of a stream. Accepted and ignored, because every job can be streamed from its journal."""

    include_usage: Flag | None
    continuous_usage_stats: Flag | None


class AnyRepetitionDetection(TypedDict, total=False):
    """When to end an answer that repeats itself."""

    max_pattern_size: Annotated[Whole, Field(ge=0)]
    min_pattern_size: Annotated[Whole, Field(ge=0)]
    min_count: Whole


def _can_be_met(wanted: AnyRepetitionDetection) -> AnyRepetitionDetection:
    longest = wanted.get("max_pattern_size", 0)
    if wanted.get("min_pattern_size", 0) > longest:
        raise disagreement("min_pattern_size", "must not be above max_pattern_size")
    if longest and wanted.get("min_count", 0) < 2:
        raise disagreement("min_count", "must be at least 2 beside max_pattern_size")
    return wanted


RepetitionDetection: TypeAlias = Annotated[AnyRepetitionDetection, AfterValidator(_can_be_met)]


def _in_order(wanted: bool) -> bool:
    if wanted:
        raise PydanticCustomError(
            "beam_search", "a job's tokens come in order, so beam search is not supported"
        )
    return wanted


class GenerationRequest(TypedDict, total=False):
    """The fields of both chats and completions. ``stream`` is accepted and ignored: the journal streams."""

    model: str | None
    frequency_penalty: Penalty | None
    logit_bias: dict[Annotated[str, AfterValidator(_token_id)], Number] | None
    max_tokens: Whole | None
    presence_penalty: Penalty | None
    response_format: ResponseFormat | None
    seed: Signed64 | None
    stop: Stop | None
    stream: Flag | None
    stream_options: StreamOptions | None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None
    # OpenAI's range begins at 0, which vLLM refuses: it would leave no token to sample.
    top_p: Annotated[Number, Field(gt=0, le=1)] | None
    user: str | None

    # vLLM's extensions.
    add_special_tokens: Flag
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None
    bad_words: list[NonEmpty]
    cache_salt: CacheSalt | None
    ec_transfer_params: dict[str, Any] | None
    ignore_eos: Flag
    include_stop_str_in_output: Flag
    kv_transfer_params: dict[str, Any] | None
    length_penalty: Annotated[Number, Field(allow_inf_nan=True)]
    logprob_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None
    min_tokens: Annotated[Whole, Field(ge=0)]
    mm_payload: Literal["tensors", "none"]
    priority: Signed64
    prompt_logprobs: Logprobs | None
    repetition_detection: RepetitionDetection | None
    repetition_penalty: Annotated[Number, Field(gt=0)] | None
    request_id: str
    return_mm_kwargs: Flag | None
    return_token_ids: Flag | None
    return_token_offsets: Flag | None
    return_tokens_as_token_ids: Flag | None
    routed_experts_prompt_start: Annotated[Whole, Field(ge=0)]
    session_id: str | None
    skip_special_tokens: Flag
    spaces_between_special_tokens: Flag
    stop_token_ids: list[TokenId] | None
    stream_interval: Annotated[Whole, Field(ge=1)] | None
    structured_outputs: StructuredOutputs | None
    thinking_token_budget: Annotated[int, Strict(), Field(ge=-1)] | None
    top_k: Annotated[Whole, Field(ge=-1)] | None
    truncate_prompt_tokens: TruncatedTo | None
    truncation_side: Literal["left", "right"] | None
    use_beam_search: Annotated[Flag, AfterValidator(_in_order)]
    vllm_xargs: dict[str, str | Number | list[str | Number]] | None
    watermarking: Flag | None


class FunctionDefinition(TypedDict, total=False):
    """A function that the model may call. Like vLLM, and unlike OpenAI, we accept any name."""

    name: Required[str]
    description: str | None
    parameters: dict[str, Any] | None
    strict: Flag | None
    defer_loading: Flag | None


class FunctionTool(TypedDict, total=False):
    """A tool. vLLM supports only functions."""

    type: Literal["function"]
    function: Required[FunctionDefinition]
    defer_loading: Flag | None


class FunctionName(TypedDict):
    """Names a function."""

    name: NonEmpty


class NamedToolChoice(TypedDict, total=False):
    """Makes the model call this function."""

    type: Literal["function"]
    function: Required[FunctionName]


def _kind_of_choice(value: Any) -> str | None:
    return "word" if isinstance(value, str) else "function" if isinstance(value, dict) else None


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[NamedToolChoice, Tag("function")],
    Discriminator(
        _kind_of_choice,
        custom_error_type=WRONG_SHAPE,
        custom_error_message="must be 'none', 'auto', 'required' or an object that names a function",
    ),
]


@with_config(BODY_CONFIG)
class AnyChat(GenerationRequest, total=False):
    """The body of ``/v1/chat/completions``."""

    messages: Required[Annotated[list[Message], Field(min_length=1), Strict()]]
    n: Annotated[Whole, Field(ge=1, le=MOST_CHOICES)] | None
    logprobs: Flag | None
    top_logprobs: Logprobs | None
    max_completion_tokens: Whole | None
    parallel_tool_calls: Flag | None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    tools: Annotated[list[FunctionTool], Field(min_length=1)] | None
    tool_choice: ToolChoice | None

    # vLLM's extensions.
    add_generation_prompt: Flag
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None
    continue_final_message: Flag
    documents: list[dict[str, str]] | None
    echo: Flag
    include_reasoning: Flag
    media_io_kwargs: dict[str, dict[str, Any]] | None
    mm_processor_kwargs: dict[str, Any] | None
    return_prompt_text: Flag | None


@with_config(BODY_CONFIG)
class AnyCompletion(GenerationRequest, total=False):
    """The body of ``/v1/completions``."""

    prompt: Prompts | None
    n: Annotated[Whole, Field(ge=1, le=MOST_CHOICES)]
    echo: Flag | None
    logprobs: Logprobs | None
    suffix: str | None

    # vLLM's extensions.
    prompt_embeds: str | list[str] | None


def _spelling_agrees(spelt: dict[str, Any]) -> None:
    """Check fields that vLLM compares before it parses them: then the strings "false" and "no" are true."""
    if spelt.get("continue_final_message") and spelt.get("add_generation_prompt"):
        raise disagreement("continue_final_message", "needs add_generation_prompt: false beside it")
    if not spelt.get("logprobs"):
        if spelt.get("logprob_token_ids"):
            raise disagreement("logprob_token_ids", "needs logprobs: true beside it")
        if top := spelt.get("top_logprobs"):
            raise disagreement("top_logprobs", "{value} needs logprobs: true beside it", value=top)


def _chat_agrees(spelt: Any, read: ValidatorFunctionWrapHandler) -> AnyChat:
    chat: AnyChat = read(spelt)
    _spelling_agrees(spelt)
    _choices_differ(chat, chat.get("n"))
    total = chat.get("max_completion_tokens")
    if total is None:
        _length_is_possible(chat, "max_tokens", chat.get("max_tokens"))
    else:
        _length_is_possible(chat, "max_completion_tokens", total)
    if chat.get("continue_final_message") and chat.get("add_generation_prompt", True):
        raise disagreement("continue_final_message", "needs add_generation_prompt: false beside it")
    if "tool_choice" in chat:
        _choice_is_among_the_tools(chat)
    _one_format(chat)
    return chat


def _completion_agrees(spelt: Any, read: ValidatorFunctionWrapHandler) -> AnyCompletion:
    completion: AnyCompletion = read(spelt)
    if completion.get("prompt") is None and not completion.get("prompt_embeds"):
        raise disagreement("prompt", "is missing")
    _choices_differ(completion, completion.get("n"))
    limit = completion.get("max_tokens")
    if limit is None:
        limit = DEFAULT_COMPLETION_TOKENS
    # With echo and no answer, vLLM scores the prompt.
    scoring = limit == 0 and completion.get("echo")
    _length_is_possible(completion, "max_tokens", 1 if scoring else limit)
    if completion.get("logprob_token_ids"):
        if completion.get("logprobs") is None:
            raise disagreement("logprob_token_ids", "needs logprobs beside it")
        # vLLM compares this before it parses it, too: "0" is not 0.
        if scoring and spelt["max_tokens"] == 0:
            raise disagreement("logprob_token_ids", "needs an answer, and max_tokens is 0")
    _one_format(completion)
    return completion


def _choices_differ(request: GenerationRequest, n: int | None) -> None:
    if n is not None and n > 1 and request.get("temperature") == 0:
        raise disagreement("n", "{n} choices are the same at temperature 0; raise temperature", n=n)


def _length_is_possible(request: GenerationRequest, field: str, limit: int | None) -> None:
    """Check the fields for the maximum and minimum length of the answer against each other."""
    if limit is None:
        return
    if limit < 1:
        raise disagreement(field, "{limit} is below the minimum 1", limit=limit)
    least = request.get("min_tokens", 0)
    if least > limit:
        raise disagreement(
            "min_tokens", "{least} is above {field}, which is {limit}", least=least, field=field, limit=limit
        )


def _choice_is_among_the_tools(chat: AnyChat) -> None:
    choice = chat.get("tool_choice")
    if choice == "none" or choice is None:
        return
    tools = chat.get("tools")
    if tools is None:
        raise disagreement("tool_choice", "needs tools beside it")
    if isinstance(choice, dict) and choice["function"]["name"] not in {
        tool["function"]["name"] for tool in tools
    }:
        raise disagreement("tool_choice", "names a function that is not among the tools")


def _one_format(request: GenerationRequest) -> None:
    if "structured_outputs" not in request:
        return
    given = constraint_of_outputs(request["structured_outputs"])
    if given is None:
        return
    if constraint_of_format(request.get("response_format")) not in {None, given}:
        raise disagreement("structured_outputs", "asks for another format than response_format; keep one")
    choice: object = request.get("tool_choice", "none")
    if given in {"json", "regex", "choice"} and not isinstance(choice, str):
        raise disagreement("structured_outputs", "has no effect on the call of a tool; keep one")


ChatCompletionRequest: TypeAlias = Annotated[AnyChat, WrapValidator(_chat_agrees)]
CompletionRequest: TypeAlias = Annotated[AnyCompletion, WrapValidator(_completion_agrees)]
