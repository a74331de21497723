"""``inferfleet local``."""

from __future__ import annotations

import shlex
import sys
import time

import orjson
import typer

from inferfleet.cli.options import JsonFlag
from inferfleet.cli.terminal import err
from inferfleet.local.cli.options import ServicesOption, chosen_services, sigterm_as_interrupt
from inferfleet.local.services import Services, ServicesChoice
from inferfleet.schemas.errors import ServiceUnreachableError

LOOK_INTERVAL_S = 0.5

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Services on this machine.")


@app.callback()
def local() -> None:
    """Services on this machine."""


@app.command()
def up(*, services: ServicesOption = ServicesChoice.AUTO, as_json: JsonFlag = False) -> None:
    """Start RabbitMQ and Redis, print their URLs as two `export` lines, and run until Ctrl-C.

    The services leave nothing behind: their data is deleted when they stop.
    """
    try:
        with sigterm_as_interrupt(), chosen_services(services) as running:
            err(f"{running.announcement}\n")
            _print_urls(running, as_json=as_json)
            sys.stderr.write("Ctrl-C ends them\n")
            while True:
                _require_alive(running)
                time.sleep(LOOK_INTERVAL_S)
    except KeyboardInterrupt:
        sys.stderr.write("ended\n")


def _print_urls(services: Services, *, as_json: bool) -> None:
    if as_json:
        urls = {
            "services": services.description,
            "kind": services.kind,
            "amqp_url": services.amqp_url,
            "redis_url": services.redis_url,
        }
        if services.management_url is not None:
            urls["management_url"] = services.management_url
        sys.stdout.write(orjson.dumps(urls).decode() + "\n")
    else:
        if services.management_url is not None:
            err(f"management of RabbitMQ: {services.management_url}\n")
        sys.stdout.write(f"export INFERFLEET_AMQP_URL={shlex.quote(services.amqp_url)}\n")
        sys.stdout.write(f"export INFERFLEET_REDIS_URL={shlex.quote(services.redis_url)}\n")
    sys.stdout.flush()


def _require_alive(services: Services) -> None:
    servers = {"RabbitMQ": services.broker, "Redis": services.store}
    for name, server in servers.items():
        if server is not None and not server.running:
            raise ServiceUnreachableError(f"{name} exited unexpectedly; restart with `inferfleet local up`")
