"""Counts the searches of one client, for metrics."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class SearchCounts:
    """How many searches have succeeded or failed, how long they took in all, and what they have found."""

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0
    hits: int = 0

    @contextmanager
    def counting(self) -> Generator[None]:
        """Count a search, which is the block."""
        began = time.monotonic()
        try:
            yield
        except Exception:
            self.failed += 1
            raise
        else:
            self.succeeded += 1
        finally:
            self.seconds += time.monotonic() - began
