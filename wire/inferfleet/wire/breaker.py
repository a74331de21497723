"""A circuit breaker for each service: after several failures in a row, calls fail at once.

Otherwise every call of a busy client would wait for its own connect timeout during an outage.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from circuitbreaker import CircuitBreaker  # pyright: ignore[reportMissingTypeStubs]

from inferfleet.schemas.errors import ServiceUnreachableError

FAILURE_THRESHOLD = 5
"""Failures in a row that open the circuit."""

RECOVERY_S = 1.0
"""How long the circuit stays open before another call may try."""


class Breaker:
    """Counts the failures of one service, over all callers in the process."""

    def __init__(self, service: str, *failures: type[Exception]) -> None:
        self._service = service
        self._circuit = CircuitBreaker(
            failure_threshold=FAILURE_THRESHOLD, recovery_timeout=RECOVERY_S, expected_exception=failures
        )

    @property
    def open(self) -> bool:
        """Whether a call would fail at once."""
        return bool(self._circuit.opened)

    @contextmanager
    def guarded(self) -> Generator[None]:
        """Run the block, unless the circuit is open.

        Raises:
            ServiceUnreachableError: The circuit is open, because the service has just failed several times.

        """
        if self.open:
            raise ServiceUnreachableError(
                f"{self._service} failed {self._circuit.failure_count} times in a row "
                f"(last: {self._circuit.last_failure}); retrying within {RECOVERY_S:g} s"
            )
        with self._circuit:
            yield
