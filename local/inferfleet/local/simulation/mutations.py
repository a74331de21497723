"""Faults put into the product on purpose: an explorer that does not find them would not find others.

Each is a change of the text of a script or of a function, made when a process begins. The text must be there, else
the mutation fails: whoever changes that text says here what the fault would be in the new one.
"""

from __future__ import annotations

import __future__

import hashlib
import importlib
import inspect
import textwrap
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from inferfleet.wire import scripts


class MutationError(Exception):
    """The text that a mutation changes is not there."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """``where`` is ``lua:script`` or ``module:Class.method``; each pair of ``changes`` is old and new text.

    ``scenario`` is where it shows; ``within`` in how many schedules it must be found; ``variants`` those in which it
    can show, all by default.
    """

    where: str
    changes: tuple[tuple[str, str], ...]
    scenario: str
    within: int
    also: tuple[Mutation, ...] = field(default=())
    losses: bool = False
    """Only a Redis that loses data shows it."""

    def apply(self) -> None:
        """Put it into this process.

        Raises:
            MutationError: The text is not there, or several times.

        """
        place, _, name = self.where.partition(":")
        if place == "lua":
            self._change_script(name)
        else:
            self._change_function(place, name)
        for other in self.also:
            other.apply()

    def _changed(self, text: str) -> str:
        for old, new in self.changes:
            if text.count(old) != 1:
                raise MutationError(f"{self.where} has {text.count(old)} times the text {old!r}")
            text = text.replace(old, new)
        return text

    def _change_script(self, name: str) -> None:
        old: scripts.Script = getattr(scripts, name.upper())
        text = self._changed(old.text)
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        new = scripts.Script(text, sha)
        for module_name, value in list(vars(scripts).items()):
            if value is old:
                setattr(scripts, module_name, new)
        replaced: Any = tuple(new if script is old else script for script in scripts.ALL)
        scripts.ALL = replaced  # type: ignore[misc]  # final for everybody else

    def _change_function(self, module_name: str, name: str) -> None:
        module = importlib.import_module(module_name)
        owner: Any = module
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        old = inspect.getattr_static(owner, last)
        text = self._changed(textwrap.dedent(inspect.getsource(old)))
        code = compile(text, f"<mutation of {self.where}>", "exec", flags=__future__.annotations.compiler_flag)
        names: dict[str, Any] = {}
        exec(code, vars(module), names)  # noqa: S102 - it is the product's own text, changed
        assert isinstance(names[last], FunctionType)  # noqa: S101 - nothing else is changed so far
        setattr(owner, last, names[last])


MUTATIONS: dict[str, Mutation] = {}
