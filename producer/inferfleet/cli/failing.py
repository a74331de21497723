"""What an error becomes at the prompt: one line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def plain_errors() -> Generator[None]:
    """Turn errors of ours into a line and an exit code; leave bugs their traceback.

    1 is for a job that failed, 2 for wrong use, 3 for services out of reach.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # Only now: importing the contract takes longer than printing a help page.
        from inferfleet.schemas.errors import InferfleetError

        if not isinstance(error, InferfleetError):
            raise
        sys.stderr.write(f"inferfleet: {error}\n")
        sys.exit(exit_code(error))


def exit_code(error: Exception) -> int:
    """The exit code for an error of ours."""
    from inferfleet.schemas.errors import (
        ConfigurationError,
        InvalidJobError,
        ServiceRefusedError,
        ServiceUnreachableError,
        UnknownPoolError,
        UnknownWorkerError,
    )

    match error:
        case ServiceUnreachableError() | ServiceRefusedError():
            return 3
        case ConfigurationError() | InvalidJobError() | UnknownPoolError() | UnknownWorkerError():
            return 2
        case _:
            return 1
