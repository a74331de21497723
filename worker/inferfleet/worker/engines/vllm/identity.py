"""The identity of the model that vLLM has loaded (decision 13)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from inferfleet.worker.engines.fingerprint import commit_of, digest, fingerprint
from inferfleet.worker.ports import ModelIdentity

PROMPT_OPTIONS: Final = (
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "response_role",
    "trust_request_chat_template",
)
"""Options that change how a request becomes a prompt."""

ANSWER_OPTIONS: Final = (
    "code_revision",
    "default_mm_loras",
    "enable_auto_tool_choice",
    "exclude_tools_when_tool_choice_none",
    "generation_config",
    "hf_config_path",
    "hf_overrides",
    "kv_cache_dtype",
    "load_format",
    "logits_processors",
    "mm_processor_kwargs",
    "model_class_overrides",
    "model_weights",
    "override_generation_config",
    "quantization_config",
    "reasoning_parser",
    "skip_tokenizer_init",
    "tokenizer_mode",
    "tokenizer_revision",
    "tool_call_parser",
    "tool_strict_level",
)
"""Options that change what the model says or how its tokens are read. Others affect only speed or size."""


def model_identity(
    name: str, engine: Any, options: dict[str, Any], *, chat_template: str | None
) -> ModelIdentity:
    """Return the model's identity. Reads some megabytes from disk for a large model.

    ``options`` are all options of the engine and the front end; ``chat_template`` is the template that
    overrides the tokenizer's.
    """
    config = engine.model_config
    tokenizer = None if config.skip_tokenizer_init else engine.get_tokenizer()
    commit: str = commit_of(config.model) or getattr(config.hf_config, "_commit_hash", None) or ""
    return ModelIdentity(
        engine="vllm",
        name=name,
        # A commit on the hub identifies the files; the name of a branch does not.
        revision=commit or config.revision or "",
        weights=commit or fingerprint(Path(config.model)),
        tokenizer=_tokenizer(tokenizer),
        prompt=digest(
            [chat_template or getattr(tokenizer, "chat_template", None), _chosen(options, PROMPT_OPTIONS)]
        ),
        dtype=str(config.dtype).removeprefix("torch."),
        quantization=str(config.quantization or ""),
        options=digest(_chosen(options, ANSWER_OPTIONS) | _pooling(config)),
    )


def _chosen(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options.get(name) for name in names}


def _pooling(config: Any) -> dict[str, Any]:
    """Return how an embedding or classifying model pools its tokens. Other models do not pool."""
    return (
        {}
        if config.pooler_config is None
        else {"pooling": [config.convert_type, asdict(config.pooler_config)]}
    )


def _tokenizer(tokenizer: Any) -> str:
    """Fingerprint the loaded tokenizer, wherever it came from: its vocabulary, and how it splits text."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = sorted((str(token), number) for token, number in tokenizer.get_vocab().items())
    return digest([vocabulary, backend.to_str() if backend is not None else ""])
