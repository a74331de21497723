"""``inferfleet doctor``."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

import orjson
import typer

from inferfleet.cli.options import JsonFlag, none_empty, producer_settings
from inferfleet.cli.terminal import err, line, out
from inferfleet.producer.doctor.diagnosis import diagnose
from inferfleet.producer.doctor.finding import Finding, Severity


def command(
    *,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Pool to check; repeatable. All known ones by default.", callback=none_empty),
    ] = None,
    management_url: Annotated[
        str | None,
        typer.Option(
            envvar="INFERFLEET_MANAGEMENT_URL",
            help="Address of RabbitMQ's HTTP API, http://user:password@host:15672, to check policies.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Look for what is wrong with the fleet, as it is seen from here, and say what to do. Changes nothing.

    Exits with 1 if there is an error, with 0 if there are only warnings.
    """
    findings: list[Finding] = []
    try:
        asyncio.run(_diagnose(findings, pool, management_url, as_json=as_json))
    finally:
        # What was found before something failed may be why it did.
        if as_json:
            out(orjson.dumps(findings).decode() + "\n")
    if not as_json and not findings:
        err("inferfleet: no finding\n")
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)


async def _diagnose(
    findings: list[Finding], pools: list[str] | None, management_url: str | None, *, as_json: bool
) -> None:
    async with aclosing(diagnose(producer_settings(), pools=pools, management_url=management_url)) as found:
        async for finding in found:
            findings.append(finding)
            if not as_json:
                out(f"{finding.severity}  {line(finding.subject)}: {line(finding.what)}\n")
                out(f"    {line(finding.remedy)}\n")
