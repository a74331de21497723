"""Embedding vectors: a direction drawn from the prompt's digest, of length 1."""

from __future__ import annotations

import base64
import hashlib
import math
import struct

from inferfleet.worker.engines.simulated.prompt import Prompt


def unit_vector(prompt: Prompt, dimensions: int) -> list[float]:
    """Return the vector of a prompt, rounded to 32-bit floats. Equal prompts have equal vectors."""
    drawn = hashlib.shake_128(prompt.key).digest(2 * dimensions)
    # Odd numbers only, so that no vector is zero.
    numbers = [value | 1 for value in struct.unpack(f"<{dimensions}h", drawn)]
    length = math.sqrt(sum(value * value for value in numbers))
    return list(
        struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *[v / length for v in numbers]))
    )


def as_base64(vector: list[float]) -> str:
    """Encode a vector as OpenAI does: little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
