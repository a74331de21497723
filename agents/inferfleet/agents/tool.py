"""Tools: typed Python functions that a model may call, and what each call may cost.

A tool never fails a run. What goes wrong is a result that the model reads: invalid arguments, an exception, a
timeout, a result that is too large.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast, get_args, get_type_hints, overload

import anyio
import anyio.to_thread
import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import to_json

from inferfleet.producer.fleet import Fleet
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.limits import LONGEST_S
from inferfleet.schemas.problems import describe
from inferfleet.schemas.run import AgentName

TOOL_TIMEOUT_S: Final = 60.0
MAX_RESULT_BYTES: Final = 64 * 1024

THREADS: Final = 64
"""How many calls of blocking functions run at a time in a process; one that hangs keeps its thread."""

_THREADS: Final = anyio.CapacityLimiter(THREADS)

_NAME: Final[TypeAdapter[str]] = TypeAdapter(AgentName)


class ArgumentsError(Exception):
    """The model has passed arguments that the tool does not take."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may know of its call. It gets this if it has a parameter of this type.

    ``idempotency_key`` is the same whenever the same call is made, whoever makes it. ``fleet`` is the
    runner's client.
    """

    run_id: str
    call: str
    tenant: str
    idempotency_key: str
    fleet: Fleet


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What the model reads of a call."""

    content: str
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that a model may call. Make one of a Python function with ``tool``.

    A call takes at most ``timeout_s`` for each try, and is tried ``retries`` times more if the function
    raises. A ``repeatable`` call is made again if its runner dies; about any other call a person is asked
    then. One that ``needs_approval`` waits for a person, and is denied after ``approval_timeout_s``, if that
    is set. A result of more than ``max_result_bytes`` is an error.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    invoke: Callable[[dict[str, Any], ToolContext], Awaitable[object]]
    timeout_s: float = TOOL_TIMEOUT_S
    retries: int = 0
    repeatable: bool = False
    needs_approval: bool = False
    approval_timeout_s: float | None = None
    max_result_bytes: int = MAX_RESULT_BYTES

    def __post_init__(self) -> None:
        check_name(self.name, "tool")
        for option, value in (("timeout_s", self.timeout_s), ("approval_timeout_s", self.approval_timeout_s)):
            if value is not None and not 0 < value <= LONGEST_S:
                raise ConfigurationError(
                    f"tool {self.name}: {option}={value!r} is not above 0 and at most {LONGEST_S} seconds"
                )
        if self.retries < 0 or self.max_result_bytes < 1:
            raise ConfigurationError(
                f"tool {self.name}: retries={self.retries!r} must be at least 0, and "
                f"max_result_bytes={self.max_result_bytes!r} at least 1"
            )

    async def call(self, arguments: str, context: ToolContext) -> ToolOutcome:
        """Make a call with these arguments, as JSON. Whatever the function does, there is an outcome."""
        try:
            given = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError as error:
            return ToolOutcome(f"error: the arguments are not JSON ({error})", failed=True)
        if not isinstance(given, dict):
            return ToolOutcome("error: the arguments are not a JSON object", failed=True)
        try:
            for _ in range(self.retries):
                outcome = await self._try(cast("dict[str, Any]", given), context)
                if not outcome.failed:
                    return outcome
            return await self._try(cast("dict[str, Any]", given), context)
        except ArgumentsError as error:
            return ToolOutcome(f"error: invalid arguments: {error}", failed=True)

    async def _try(self, given: dict[str, Any], context: ToolContext) -> ToolOutcome:
        limit = asyncio.timeout(self.timeout_s)
        try:
            async with limit:
                result = await self.invoke(given, context)
            text = result if isinstance(result, str) else to_json(result, fallback=repr).decode()
            # A lone surrogate has no bytes.
            size = len(encoded := text.encode(errors="replace"))
        except ArgumentsError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            # A tool may raise this by itself, as what it awaits was cancelled.
            if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                return ToolOutcome(
                    f"error: no result within {self.timeout_s:g} s; it may have had an effect", failed=True
                )
            return ToolOutcome(self._bounded(f"error: {type(error).__name__}: {error}"), failed=True)
        if size > self.max_result_bytes:
            return ToolOutcome(
                f"error: the result has {size:,} bytes, and at most {self.max_result_bytes:,} are allowed: "
                "ask for less",
                failed=True,
            )
        return ToolOutcome(encoded.decode())

    def _bounded(self, text: str) -> str:
        return text.encode(errors="replace")[: self.max_result_bytes].decode(errors="ignore")


@overload
def tool(function: Callable[..., Any], /, **options: Any) -> Tool: ...


@overload
def tool(**options: Any) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None, /, **options: Any
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function, also as a decorator; ``options`` are fields of ``Tool``.

    The model reads the function's name, docstring and signature. Each parameter needs a type. One of the
    type ``ToolContext`` is not the model's. Functions that are not coroutines run in a thread.

    Raises:
        ConfigurationError: A parameter has no type, or an option is invalid.

    """
    if function is None:
        return lambda given: tool(given, **options)
    name = options.pop("name", getattr(function, "__name__", "tool"))
    signature = _Signature.of(function, name)

    async def invoke(given: dict[str, Any], context: ToolContext) -> object:
        arguments = signature.read(given, context)
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        return await anyio.to_thread.run_sync(
            lambda: function(**arguments), abandon_on_cancel=True, limiter=_THREADS
        )

    return Tool(
        name=name,
        description=options.pop("description", inspect.getdoc(function) or ""),
        parameters=signature.schema,
        invoke=invoke,
        **options,
    )


def _mentions_context(hint: object) -> bool:
    return hint is ToolContext or any(map(_mentions_context, get_args(hint)))


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def check_name(name: str, kind: str) -> None:
    """Make sure that an agent or a tool may have this name.

    Raises:
        ConfigurationError: It may not.

    """
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise ConfigurationError(
            f"{kind} {name!r}: a name has 1 to 64 letters, digits, underscores and dashes"
        ) from None


@dataclass(frozen=True, slots=True)
class _Signature:
    """The parameters of a function: a model of those that the caller passes, and those of the context."""

    model: type[BaseModel]
    contexts: tuple[str, ...] = ()
    schema: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> _Signature:
        hints = get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        contexts: list[str] = []
        for parameter in inspect.signature(function).parameters.values():
            if hints.get(parameter.name) is ToolContext:
                contexts.append(parameter.name)
                continue
            if _mentions_context(hints.get(parameter.name)):
                raise ConfigurationError(
                    f"tool {name}: the type of {parameter.name!r} must be ToolContext and nothing else"
                )
            if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
                raise ConfigurationError(f"tool {name}: {parameter} cannot be passed by its name")
            if parameter.name not in hints:
                raise ConfigurationError(f"tool {name}: parameter {parameter.name!r} needs a type")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = model.model_json_schema()
        schema.pop("title", None)
        return cls(model, tuple(contexts), schema)

    def read(self, given: dict[str, Any], context: ToolContext) -> dict[str, Any]:
        try:
            read = self.model.model_validate(given)
        except ValidationError as error:
            raise ArgumentsError(describe(error, whole="the arguments")) from error
        arguments = {name: getattr(read, name) for name in type(read).model_fields}
        return arguments | dict.fromkeys(self.contexts, context)
