"""The members of request bodies that are known by name, so that a misspelt one can be told from a new one.

What is unknown passes through to the engine, which may know it; a name that is nearly one of these is
probably that one, and is worth a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from inferfleet.schemas.near_match import near_match

logger = logging.getLogger(__name__)

_NAMES: Final = """
add_generation_prompt add_special_tokens allowed_token_ids audio bad_words best_of cache_salt
chat_template chat_template_kwargs continue_final_message dimensions documents ec_transfer_params
echo embed_dtype encoding_format endianness frequency_penalty function_call functions guided_choice
guided_grammar guided_json guided_regex ignore_eos include_reasoning include_stop_str_in_output input
kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs max_completion_tokens
max_tokens media_io_kwargs messages metadata min_p min_tokens mm_payload mm_processor_kwargs
modalities model n normalize padding parallel_tool_calls prediction presence_penalty priority prompt
prompt_cache_key prompt_cache_retention prompt_embeds prompt_logprobs reasoning_effort
repetition_detection repetition_penalty request_id response_format return_mm_kwargs
return_prompt_text return_token_ids return_token_offsets return_tokens_as_token_ids
routed_experts_prompt_start safety_identifier seed service_tier session_id simulated
skip_special_tokens spaces_between_special_tokens stop stop_token_ids store stream stream_interval
stream_options structured_outputs suffix temperature thinking_token_budget tool_choice tools top_k
top_logprobs top_p truncate_prompt_tokens truncation_side use_activation use_beam_search user
verbosity vllm_xargs watermarking web_search_options
"""

KNOWN_MEMBERS: Final = frozenset(_NAMES.split())
"""Of OpenAI's endpoints and of vLLM's, and the simulated engine's own."""

CUTOFF: Final = 0.8
LOOKED_AT: Final = 16
"""Unknown members that are looked at. Names are the callers', and comparing them takes time."""

LONGEST: Final = 64
"""Characters of the longest name that is compared."""


def warn_of_misspelt_members(body: Iterable[str]) -> None:
    """Log each member whose name is nearly a known one, once for each set of unknown names."""
    if not KNOWN_MEMBERS.issuperset(body):
        unknown = [name for name in body if name not in KNOWN_MEMBERS]
        _warn(frozenset(unknown[:LOOKED_AT]))


@lru_cache(maxsize=256)
def _warn(unknown: frozenset[str]) -> None:
    for name in sorted(unknown):
        near = near_match(name, KNOWN_MEMBERS, cutoff=CUTOFF) if len(name) <= LONGEST else None
        if near is not None:
            logger.warning(
                "body.%s is no member of a request that we know (did you mean %r?); it is passed on as it is",
                name,
                near,
            )
