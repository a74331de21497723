"""Two commits against each other: the no-op and the round-trip cases, interleaved, and their ratios.

    benchmarks/compare BASE            this working tree against BASE
    benchmarks/compare BASE --head REF two commits
    benchmarks/compare HEAD --set INFERFLEET_TRACING=true
                                       what a setting costs: head has it, base does not

Each commit's sources come from a worktree of its own, with the contender's script of then.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from children import end_in_order
from known import OURS
from machine import benchmark_services
from rounds import Figures, Sizes, interleaved
from statistic import spread

REPOSITORY = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="a commit, tag or branch")
    parser.add_argument("--head", help="another one; without it, the working tree as it is")
    parser.add_argument(
        "--set",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable that only head has",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual number of jobs")
    arguments = parser.parse_args()
    end_in_order()
    with (
        checked_out(arguments.base) as base,
        checked_out(arguments.head) as head,
        benchmark_services() as services,
    ):
        cases = OURS.cases - {"50 ms"}
        contenders = [
            replace(
                OURS,
                name=name,
                cases=cases,
                source_roots=tuple(package.parent for package in sorted(folder.glob("*/inferfleet"))),
                # Each with its own script: that of today need not fit the code of then.
                scripts=folder / "benchmarks" / "contenders",
                environment=environment,
            )
            for name, folder, environment in (
                ("base", base, {}),
                ("head", head, dict(arguments.set)),
            )
        ]
        sizes = Sizes().scaled(arguments.scale)
        print_ratios(**interleaved(contenders, services, rounds=arguments.rounds, sizes=sizes))


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"write NAME=VALUE, not {text!r}")
    return name, value


@contextmanager
def checked_out(reference: str | None) -> Iterator[Path]:
    """A folder with the sources of a commit; without one, this working tree."""
    if reference is None:
        yield REPOSITORY
        return
    with tempfile.TemporaryDirectory(prefix="inferfleet-compare-") as parent:
        folder = Path(parent) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(folder), reference)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def print_ratios(base: Sequence[Figures], head: Sequence[Figures]) -> None:
    """Print medians, their ratio, and how far single rounds lie apart from their median."""
    print(f"{'':44} {'base':>10} {'head':>10} {'head/base':>10} {'spread':>8}")
    for figure in base[0]:
        before, after = ([figures[figure] for figures in rounds] for rounds in (base, head))
        median, other = statistics.median(before), statistics.median(after)
        ratio = other / median if median else float("nan")
        apart = max(spread(before), spread(after))
        print(f"{figure:44} {median:>10,.4g} {other:>10,.4g} {ratio:>10.2f} {apart:>8.0%}")


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(REPOSITORY), *arguments], check=True)


if __name__ == "__main__":
    main()
