"""The arguments of the simulated engine, and how long a step takes.

The defaults describe Llama 3.1 8B in bfloat16 on one H100 SXM with 80 GB, derived and not measured here:

- the weights are 8.03e9 parameters of 2 bytes = 16.06 GB; a token in the KV cache is 32 layers x 8 heads
  x 128 x 2 (key and value) x 2 bytes = 131,072 bytes (the model's ``config.json``);
- the card reads 3.35 TB/s and computes 989 TFLOP/s in dense bfloat16 (NVIDIA's data sheet), of which
  decoding reaches about 77 % (vLLM with this model on an A100, johnmusgrave.com/p/vllm-throughput-
  latency-sweep-on) and prefill, as we assume, half.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inferfleet.schemas.numbers import NUMBER
from inferfleet.worker.engines.engine_args import read_engine_args

Seconds = Annotated[float, Field(ge=0), NUMBER]
Tokens = Annotated[int, Field(ge=1), NUMBER]


class SimulatedParameters(BaseModel):
    """The simulated engine's ``engine_args``. Seconds are those of the modelled GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    load_s: Seconds = 0.0
    """Time from start to ready. It depends more on disks and caches than on the model, so set your own."""

    prefill_tokens_per_s: Annotated[float, Field(gt=0), NUMBER] = 30_000.0
    """Prompt tokens computed per second: 989e12 x 0.5 / (2 x 8.03e9)."""

    decode_step_base_s: Seconds = 0.0062
    """A decode step with an empty batch: all weights read once, 16.06e9 / (3.35e12 x 0.77)."""

    decode_step_per_sequence_s: Seconds = 0.00005
    """What each sequence adds to a step: 1,024 tokens of its KV cache read, 134e6 / (3.35e12 x 0.77)."""

    kv_cache_tokens: Tokens = 400_000
    """Tokens that fit in KV memory: (0.9 x 85.9e9 - 16.06e9 - about 5e9 for activations) / 131,072."""

    prefix_caching: bool = False
    """Whether the memory that no running sequence needs keeps prompts and answers for later prompts."""

    max_num_batched_tokens: Tokens = 8192
    """The most prompt tokens computed in one step. vLLM's default for a server on an H100."""

    max_model_len: Annotated[int, Field(ge=2), NUMBER] = 32_768
    """The most tokens of prompt and answer together."""

    speed: Annotated[float, Field(ge=0), NUMBER] = 1.0
    """Modelled seconds per real second: 10 is ten times as fast. 0 turns all waiting off."""

    embedding_dimensions: Annotated[int, Field(ge=1, le=65_536), NUMBER] = 384
    """Length of an embedding vector."""

    weights: Annotated[int, Field(ge=-1), NUMBER] = 0
    """The weights that it pretends to have: another number gives other text, and another model identity. With
    -1 they are lost: every token of an answer is the same."""

    token_log: Path | None = None
    """A file to which each step appends a line with the number of its tokens: this counts those of a killed
    process, too."""

    @model_validator(mode="after")
    def _one_sequence_fits(self) -> Self:
        if self.kv_cache_tokens < self.max_model_len:
            raise ValueError(
                f"kv_cache_tokens={self.kv_cache_tokens} cannot hold one sequence of "
                f"max_model_len={self.max_model_len} tokens; raise the first or lower the second"
            )
        return self

    @classmethod
    def from_engine_args(cls, engine_args: Mapping[str, Any]) -> Self:
        """Read the engine's arguments.

        Raises:
            ConfigurationError: An argument is unknown or has an impossible value; the message names it.

        """
        return read_engine_args(cls, engine_args, engine="simulated")

    def step_s(self, *, prefill_tokens: int, decoding: int) -> float:
        """Return how long the modelled GPU takes for one step, in seconds.

        ``prefill_tokens`` is the number of prompt tokens in the step, ``decoding`` the number of sequences
        that get their next token. The two parts add up: arithmetic limits prefill, and memory limits
        decoding.
        """
        prefill_s = prefill_tokens / self.prefill_tokens_per_s
        if not decoding:
            return prefill_s
        return prefill_s + self.decode_step_base_s + decoding * self.decode_step_per_sequence_s

    def real_s(self, modelled_s: float) -> float:
        """Convert modelled seconds to real seconds."""
        return modelled_s / self.speed if self.speed else 0.0
