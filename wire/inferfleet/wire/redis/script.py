"""The Lua scripts.

Each script has a function of its name in ``job_scripts``, ``session_scripts`` or another such module, which
makes a command of keys and arguments. The script's text in ``lua`` begins with the same names, in the same
order.

Each script touches only keys of one job, session, pool, batch or client, so it runs in one Redis Cluster
slot. And each may be sent twice: the second run changes nothing, even if others have acted in between. So it
is safe to repeat a pipeline whose replies were lost.
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from typing import Final

Argument = str | int | float | bytes

Command = tuple[Argument, ...]
"""A command that a pipeline sends."""


class Script:
    """One Lua script: its name, its text, and the SHA-1 by which Redis finds it."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.load(text)

    def load(self, text: str) -> None:
        """Set the text of the script."""
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_FOLDER: Final = files("inferfleet.wire.redis").joinpath("lua")

_PART: Final = re.compile(r"^-- part: (\w+)\n", re.MULTILINE)
"""The placeholder of ``lua/parts/NAME.lua``, which several scripts share."""


def _text(name: str) -> str:
    text = _FOLDER.joinpath(f"{name}.lua").read_text()
    return _PART.sub(lambda part: _FOLDER.joinpath("parts", f"{part[1]}.lua").read_text(), text)


SCRIPTS: Final = {
    name: Script(name, _text(name))
    for name in sorted(text.name.removesuffix(".lua") for text in _FOLDER.iterdir() if text.is_file())
}
"""All scripts, by name."""

LOADED: Final = tuple(script for script in SCRIPTS.values() if script.name != "access")
"""The scripts that a new connection loads. ``access`` runs only once, at the start, and is loaded then."""
