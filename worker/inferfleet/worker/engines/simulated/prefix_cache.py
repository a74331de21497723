"""The prefix cache: which blocks of prompts and answers the engine still has in its KV memory.

As in vLLM (``vllm/v1/core``: ``kv_cache_utils.py``, ``kv_cache_manager.py``), a block has 16 tokens, its hash
covers all tokens before it, only full blocks are kept, the last token of a prompt is always computed, and the
blocks that were not used for longest give way to running sequences. Unlike there, a block that running
sequences share takes memory for each of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

BLOCK_TOKENS: Final = 16


class PrefixCache:
    """Blocks by their hashes, the one that was not used for longest first."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, None] = {}

    def find(self, blocks: Sequence[bytes], *, prompt_tokens: int) -> int:
        """Return how many of the first tokens of a prompt need not be computed."""
        found = 0
        for block in blocks[: (prompt_tokens - 1) // BLOCK_TOKENS]:
            if block not in self._blocks:
                break
            found += BLOCK_TOKENS
        return found

    def add(self, blocks: Sequence[bytes]) -> None:
        """Note that blocks were computed, or read again. The last ones give way first."""
        for block in reversed(blocks):
            self._blocks.pop(block, None)
            self._blocks[block] = None

    def fit(self, tokens: int) -> None:
        """Keep no more than so many tokens."""
        while len(self._blocks) * BLOCK_TOKENS > max(0, tokens):
            del self._blocks[next(iter(self._blocks))]


def blocks_of(tokens: Sequence[bytes], *, tenant: str) -> tuple[bytes, ...]:
    """Hash the full blocks of a prompt. Tenants share none."""
    hashes: list[bytes] = []
    before = tenant.encode()
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        block = b"\0".join(tokens[end - BLOCK_TOKENS : end])
        before = hashlib.blake2b(before + block, digest_size=16).digest()
        hashes.append(before)
    return tuple(hashes)
