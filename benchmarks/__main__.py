"""``python benchmarks``: ours and hand-written aio-pika; with ``--peers`` the other libraries too.

Writes the figures as JSON, the tables as Markdown and the plots; prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from children import end_in_order
from known import OURS, OURS_LOGGED, PEERS, RAW
from machine import benchmark_services, description, peer_versions
from plots import bars
from report import tables
from rounds import Sizes, interleaved


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--peers", action="store_true", help="with the other libraries (make bench-peers)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual number of jobs")
    parser.add_argument("--output", type=Path, help="a folder for JSON and plots; without it, only print")
    arguments = parser.parse_args()
    contenders = [OURS, OURS_LOGGED, *RAW, *(PEERS if arguments.peers else ())]
    if arguments.only:
        contenders = [contender for contender in contenders if contender.name in arguments.only]
    end_in_order()
    with benchmark_services() as services:
        print(services.announcement, file=sys.stderr)
        figures = interleaved(
            contenders, services, rounds=arguments.rounds, sizes=Sizes().scaled(arguments.scale)
        )
        machine = description(services) | peer_versions(contenders)
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "notes": {contender.name: contender.note for contender in contenders},
        "figures": figures,
    }
    print(tables(figures))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "peers.json").write_text(json.dumps(document, indent=1) + "\n")
        bars(figures, arguments.output)


if __name__ == "__main__":
    main()
