"""The scripts ``inferfleet-chaos`` and ``inferfleet-explore``. To run them takes the extra ``local``."""

from __future__ import annotations

from inferfleet.cli.failing import report_errors
from inferfleet.cli.root import import_command


def chaos() -> None:
    """Run ``inferfleet-chaos``."""
    _run("inferfleet-chaos", "inferfleet.local.chaos.cli")


def explore() -> None:
    """Run ``inferfleet-explore``."""
    _run("inferfleet-explore", "inferfleet.local.simulation.cli")


def _run(command: str, module: str) -> None:
    with report_errors():
        main = import_command(command, module, extra="local").main
    main()
