"""The command ``inferfleet``: the same client at a prompt.

Each command lives with the part it belongs to and is imported only when it is called, so that ``--help``
is quick and an install without the worker's extra still has every other command. Data goes to stdout,
everything else to stderr. Exit codes: 1 a job failed, 2 invalid usage, 3 services out of reach.
"""

from __future__ import annotations

from inferfleet.cli.root import main

__all__ = ["main"]
