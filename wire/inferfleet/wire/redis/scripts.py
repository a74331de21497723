"""The Lua scripts that change records of jobs and sessions, and the calls to them.

Each touches keys of one job, one session, one pool or one client only, so it runs in one Redis Cluster slot.
And each may be sent twice: the second run changes nothing, whoever has acted since. That is what makes it
safe to repeat a pipeline whose answer got lost.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

Argument = str | int | float | bytes


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script: its text and the SHA-1 that Redis knows it by."""

    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read ``lua/<name>.lua`` of this package."""
        text = files("inferfleet.wire.redis").joinpath("lua", f"{name}.lua").read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


CREATE: Final = Script.load("create")
STANDING: Final = Script.load("standing")
CLOSE: Final = Script.load("close")
DISCARD: Final = Script.load("discard")
CANCEL: Final = Script.load("cancel")
COPIED: Final = Script.load("copied")
START: Final = Script.load("start")
RESTART: Final = Script.load("restart")
APPEND: Final = Script.load("append")
FINISH: Final = Script.load("finish")
RELEASE: Final = Script.load("release")
RESTORE: Final = Script.load("restore")
REPLY: Final = Script.load("reply")
KEY_CLAIM: Final = Script.load("key_claim")
KEY_CHANGE: Final = Script.load("key_change")
WAITING_TURN: Final = Script.load("waiting_turn")
SESSION_ENTER: Final = Script.load("session_enter")
SESSION_FRONT: Final = Script.load("session_front")
SESSION_PUBLISHED: Final = Script.load("session_published")
SESSION_ADVANCE: Final = Script.load("session_advance")
SESSION_BEGIN: Final = Script.load("session_begin")
SESSION_RENEW: Final = Script.load("session_renew")
SESSION_APPEND: Final = Script.load("session_append")
SESSION_STATE: Final = Script.load("session_state")
SESSION_CONFIGURE: Final = Script.load("session_configure")
SESSION_IMPORT: Final = Script.load("session_import")
SESSION_DELETE: Final = Script.load("session_delete")
WORKER_SEEN: Final = Script.load("worker_seen")

ACCESS: Final = Script.load("access")
"""Not among ``ALL``: it runs once, at the start, and is loaded then."""

ALL: Final = (
    *(CREATE, STANDING, CLOSE, DISCARD, CANCEL, START, RESTART, APPEND, FINISH, RELEASE, RESTORE, REPLY),
    *(COPIED, KEY_CLAIM, KEY_CHANGE, WAITING_TURN),
    *(SESSION_ENTER, SESSION_FRONT, SESSION_PUBLISHED, SESSION_ADVANCE, SESSION_BEGIN, SESSION_APPEND),
    *(SESSION_RENEW, SESSION_STATE, SESSION_CONFIGURE, SESSION_IMPORT, SESSION_DELETE, WORKER_SEEN),
)


def call(script: Script, keys: tuple[str, ...], *arguments: Argument) -> tuple[Argument, ...]:
    """Spell a call of the script as a Redis command."""
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)
