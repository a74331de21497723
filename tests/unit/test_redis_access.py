"""The rights that are asked for are those that are used, and those that the page tells to grant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inferfleet.wire.redis.access import INDEXES, PRODUCER, WORKER, Access
from inferfleet.wire.redis.script import LOADED
from inferfleet.wire.redis.webhooks import WEBHOOKS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "redis.md"


def needed(access: Access) -> set[str]:
    return {command for commands in access.commands.values() for command in commands}


def test_all_that_scripts_do_is_asked_for() -> None:
    used = {command for script in LOADED for command in re.findall(r"redis\.p?call\('([A-Z]+)'", script.text)}
    assert used
    assert used - (needed(PRODUCER) | needed(WORKER) | set(INDEXES)) == set()


@pytest.mark.parametrize(("user", "access"), [("producer", PRODUCER), ("worker", WORKER)])
def test_the_page_grants_what_is_asked_for_and_no_more(user: str, access: Access) -> None:
    (rules,) = re.findall(rf"^ACL SETUSER {user} ((?:.*\\\n)*.*)$", PAGE.read_text(), re.MULTILINE)
    granted = {rule.upper() for rule in re.findall(r"\+(\S+)", rules)}
    always = {"SELECT", "TIME", "EVALSHA", "SCRIPT|LOAD", "EXISTS", "INFO"}
    assert granted == needed(access) | always | ({"XREAD"} if access.reads_blocked else set())


def test_the_page_grants_what_indexes_need_besides() -> None:
    (rules,) = re.findall(r"^Clients that use \[indexes.*`(.*)`", PAGE.read_text(), re.MULTILINE)
    assert {rule.upper() for rule in re.findall(r"\+(\S+)", rules)} == set(INDEXES)


def test_a_client_that_is_a_gateway_needs_no_other_rights_for_webhooks() -> None:
    used = {
        command
        for script in LOADED
        if script.name.startswith("webhook_")
        for command in re.findall(r"redis\.p?call\('([A-Z]+)'", script.text)
    }
    assert used <= set(WEBHOOKS.commands["inferfleet:{webhooks}:*"])
    assert needed(WEBHOOKS) <= needed(PRODUCER)
