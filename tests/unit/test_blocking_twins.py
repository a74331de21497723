"""The blocking client offers what the asynchronous one does, with the same arguments and results."""

from __future__ import annotations

import inspect
import re

import pytest

from inferfleet.producer import (
    Fleet,
    Index,
    JobHandle,
    Session,
    SyncFleet,
    SyncIndex,
    SyncJobHandle,
    SyncSession,
)
from inferfleet.producer.dead_letters import DeadLetters
from inferfleet.producer.sync_dead_letters import SyncDeadLetters

TWINS = [
    (Fleet, SyncFleet),
    (JobHandle, SyncJobHandle),
    (Session, SyncSession),
    (Index, SyncIndex),
    (DeadLetters, SyncDeadLetters),
]

ONLY_BLOCKING: dict[type, set[str]] = {SyncFleet: {"close"}}
"""The asynchronous client has only its context to end it."""


def public(twin: type) -> set[str]:
    return {name for name in vars(twin) if not name.startswith("_")}


@pytest.mark.parametrize(("original", "twin"), TWINS, ids=lambda each: each.__name__)
def test_a_blocking_twin_has_every_method_of_its_original(original: type, twin: type) -> None:
    assert public(twin) - ONLY_BLOCKING.get(twin, set()) == public(original)
    for name in public(original) - {"connect"}:
        assert blocking(inspect.signature(getattr(original, name))) == str(
            inspect.signature(getattr(twin, name))
        ), name


def blocking(signature: inspect.Signature) -> str:
    """Return a signature as the blocking twin has it."""
    text = str(signature).replace("AsyncGenerator[", "Generator[")
    return re.sub(r"\b(Session|JobHandle|Index)\b", r"Sync\1", text)
