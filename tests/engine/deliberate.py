"""Where the fleet differs from vLLM's server on purpose, and what it cannot refuse on submit."""

from __future__ import annotations

from typing import Final

DIFFERENT: Final[dict[str, str]] = {}
ONLY_THE_WORKER_KNOWS: Final[dict[str, str]] = {}
