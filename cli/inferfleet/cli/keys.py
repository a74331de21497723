"""``inferfleet keys``: the API keys of the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import ValidationError

from inferfleet.cli.options import JsonFlag, none_empty, not_empty, parse_duration
from inferfleet.cli.printing import print_told
from inferfleet.cli.terminal import err, out
from inferfleet.gateway.api_keys import (
    ApiKey,
    HashedSecret,
    changed_keys,
    new_key_id,
    new_secret,
    read_keys,
)
from inferfleet.producer.job_making import check_pool, read_priority
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.problems import describe
from inferfleet.schemas.shares import LEAST_WEIGHT, MOST_WEIGHT

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

FileOption = Annotated[
    Path,
    typer.Option("--file", envvar="INFERFLEET_API_KEYS_FILE", help="The file that has the keys, hashed."),
]
KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's id, as printed by `list`.", callback=not_empty)
]


@app.callback()
def keys() -> None:
    """API keys of the gateway. Gateways that use the file notice a change within seconds."""


@app.command()
def create(
    *,
    file: FileOption,
    tenant: Annotated[
        str,
        typer.Option(
            help="Whose jobs and sessions the key's are. The tenant default has those of all programs that "
            "name none.",
            callback=not_empty,
        ),
    ],
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Pool that the key may use; repeatable. All by default.", callback=none_empty),
    ] = None,
    max_priority: Annotated[
        str, typer.Option(help="Highest priority of its jobs: 0 to 9, or a name like normal.")
    ] = "9",
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="How many jobs it may submit a minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="How many tokens these may have, prompts and answers.")
    ] = None,
    guaranteed_tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            min=1, help="Jobs beyond that many tokens a minute get a priority that is lower by one."
        ),
    ] = None,
    max_unfinished_jobs: Annotated[
        int | None, typer.Option(min=1, help="How many of its jobs may be unfinished at the same time.")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=LEAST_WEIGHT,
            max=MOST_WEIGHT,
            help="Its tenant's share of a pool, with INFERFLEET_FAIR_SHARES: 1 by default.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a key and print it. It cannot be shown again, because the file has only its hash."""
    for name in pool or ():
        check_pool(name)
    key_id = new_key_id()
    text, secret = new_secret(key_id)
    try:
        key = ApiKey(
            id=key_id,
            tenant=tenant,
            secrets=(secret,),
            pools=None if pool is None else tuple(pool),
            max_priority=read_priority(max_priority),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            guaranteed_tokens_per_minute=guaranteed_tokens_per_minute,
            max_unfinished_jobs=max_unfinished_jobs,
            weight=weight,
            created_at=_now(),
        )
    except ValidationError as error:
        raise ConfigurationError(describe(error, whole="the key")) from error
    with changed_keys(file) as present:
        present.append(key)
    _print_secret(key_id, text, as_json=as_json)


@app.command("list")
def list_(*, file: FileOption, as_json: JsonFlag = False) -> None:
    """List the keys, with what they may do, and without their secrets."""
    found = read_keys(file).keys
    if as_json:
        listed = [
            {
                **key.model_dump(mode="json", exclude={"secrets"}, exclude_none=True),
                "secrets_until": [secret.until for secret in key.secrets],
            }
            for key in found
        ]
        out(orjson.dumps(listed).decode() + "\n")
        return
    for key in found:
        out("  ".join(_described(key)) + "\n")


@app.command()
def rotate(
    key: KeyArgument,
    *,
    file: FileOption,
    keep: Annotated[
        str, typer.Option(help="For how long the present secret still counts, like 30m, 24h or 0s.")
    ] = "24h",
    as_json: JsonFlag = False,
) -> None:
    """Give a key a new secret and print it. The present one counts for a while longer."""
    if (keep_s := parse_duration(keep)) is None:
        raise typer.BadParameter(f"{keep!r} is not a duration like 30m or 24h", param_hint="'--keep'")
    text, secret = new_secret(key)
    now = _now()
    try:
        until = now + timedelta(seconds=keep_s)
    except OverflowError:
        raise typer.BadParameter(f"{keep!r} is too long", param_hint="'--keep'") from None
    with changed_keys(file) as present:
        place = _place(present, key)
        kept = [
            HashedSecret(sha256=old.sha256, until=until if old.until is None else min(old.until, until))
            for old in present[place].secrets
            if old.until is None or old.until > now
        ]
        present[place] = present[place].model_copy(update={"secrets": (*kept, secret)})
    _print_secret(key, text, as_json=as_json)


@app.command()
def revoke(key: KeyArgument, *, file: FileOption, as_json: JsonFlag = False) -> None:
    """Remove a key, so that gateways refuse it. Its jobs and sessions stay."""
    with changed_keys(file) as present:
        del present[_place(present, key)]
    print_told(f"revoked {key}", {"id": key, "state": "revoked"}, as_json=as_json)


def _place(present: Sequence[ApiKey], key_id: str) -> int:
    for place, key in enumerate(present):
        if key.id == key_id:
            return place
    raise ConfigurationError(f"there is no API key {key_id!r} in the file; `inferfleet keys list` shows all")


def _described(key: ApiKey) -> list[str]:
    limits = {
        "requests/min": key.requests_per_minute,
        "tokens/min": key.tokens_per_minute,
        "guaranteed tokens/min": key.guaranteed_tokens_per_minute,
        "unfinished": key.max_unfinished_jobs,
    }
    old = [f"{secret.until:%Y-%m-%d %H:%M} UTC" for secret in key.secrets if secret.until is not None]
    return [
        key.id,
        key.tenant,
        "all pools" if key.pools is None else ",".join(key.pools),
        f"priority up to {key.max_priority}",
        *(f"{limit:,} {name}" for name, limit in limits.items() if limit is not None),
        *([f"weight {key.weight:g}"] if key.weight is not None else ()),
        f"created {key.created_at:%Y-%m-%d}",
        *(f"an old secret until {until}" for until in old),
    ]


def _print_secret(key_id: str, text: str, *, as_json: bool) -> None:
    print_told(text, {"id": key_id, "key": text}, as_json=as_json)
    if not as_json:
        err(f"inferfleet: this is the key {key_id}; it cannot be shown again\n")


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the user's time; gateways compare it with Redis'
