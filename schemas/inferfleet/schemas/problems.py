"""Turns validation errors into sentences: which field, what is wrong with it, what is allowed.

A sentence quotes numbers, and short strings for a field with fixed choices. It never quotes text that may be
a prompt, nor a hash of a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, LiteralString

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.plural import count_of

MAX_PROBLEMS = 10
"""How many problems the message describes; it only counts the others."""

MAX_QUOTED_CHARS = 64
"""The length of the longest string that a message quotes, in characters."""

WRONG_SHAPE = "wrong_shape"
"""The type of our own errors whose message says what was wanted; ``describe`` adds what was given."""

_DISAGREEMENT = "disagreement"

_LONG = 1e16
"""From here on Python prints a float with an exponent, and not all of its digits."""

_KINDS: Mapping[type, str] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

_WANTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "decimal_parsing": "a number",
    "decimal_type": "a number",
    "dict_type": "an object",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "a string",
    "tuple_type": "a list",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}

_KEY = "[key]"
"""The last step of pydantic's location when a key, not its value, is wrong."""

_NAME = (
    "1 to 63 lower-case letters, digits, dots, underscores and dashes, with a letter or digit at both ends"
)

_PROCESS_ID = "1 to 128 letters, digits, dots, underscores and dashes"

_JOB_ID = "a UUID in lower case, such as 01890a5d-ac96-774b-bcce-b302099a8057"

_SPELLING: Mapping[str, str] = {
    # By field; by pattern where fields of one name differ in it.
    "pool": f"a pool name: {_NAME}",
    "pools": f"a pool name: {_NAME}",
    "model_pools": f"a pool name: {_NAME}",
    "queue": f"a queue name: {_NAME}",
    "agent_queue": f"a queue name: {_NAME}",
    "tenant": f"a tenant name: {_NAME}",
    "index": f"an index name: {_NAME}",
    "agent": "an agent's name: 1 to 64 letters, digits, underscores and dashes",
    "id": _JOB_ID,
    "after": _JOB_ID,
    "client_id": f"a client id: {_PROCESS_ID}",
    "worker_id": f"a worker id: {_PROCESS_ID}",
    "session_id": "a session id: 1 to 128 characters without spaces and braces",
    "traceparent": "a W3C traceparent, such as 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "a W3C tracestate: at most 32 pairs, such as vendor=value,other=value",
    r"^[0-9a-f]{12}$": "a key's id: 12 hexadecimal digits in lower case",
    "sha256": "a SHA-256: 64 hexadecimal digits in lower case",
    _KEY: "a token id, such as 50256",
}

_NEVER_QUOTED = frozenset({"sha256", _KEY})
"""Misspelt values that may be a secret, or too long a part of a prompt."""


def describe(
    error: ValidationError,
    *,
    root: str = "",
    data: object = None,
    whole: str = "the job",
    quoting: bool = False,
    known: Iterable[str] = (),
) -> str:
    """Describe every problem, one per line, each beginning with the path of its field.

    Pass the validated ``data`` if its model has unions: pydantic puts the branch of a union into the location
    of an error, and this function leaves steps that are not in the data out of the path. ``whole`` names the
    data where a problem has no field. For ``quoting`` see :func:`sentence`;
    ``known`` are the members that may be there instead of an unknown one.
    """
    found: dict[str, list[ErrorDetails]] = {}
    for problem in _causes(error.errors(include_url=False)):
        found.setdefault(_path(problem, root, data), []).append(problem)
    lines = [
        f"{path or whole}: {said}"
        for path, problems in found.items()
        for said in _sentences(_without_branches(path, problems, found), quoting=quoting, known=known)
    ]
    if len(lines) > MAX_PROBLEMS:
        lines[MAX_PROBLEMS:] = [f"and {len(lines) - MAX_PROBLEMS:,} more problems"]
    return "\n".join(lines)


def disagreement(field: str, problem: LiteralString, /, **values: object) -> PydanticCustomError:
    """Make the error for a field that contradicts other fields of its model. ``problem`` is a template."""
    return PydanticCustomError(_DISAGREEMENT, problem, {"field_": field, **values})


def kind(value: object) -> str:
    """Name the JSON type of a value, with its article."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _causes(problems: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out that a list is too short if it is so only because pydantic does not count invalid items."""
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short" or len(problem["input"]) < problem.get("ctx", {})["min_length"]
    ]


def _without_branches(path: str, problems: list[ErrorDetails], paths: Iterable[str]) -> list[ErrorDetails]:
    """Leave out the branches of a union that a value is not of, if another branch has another problem."""
    others = [problem for problem in problems if problem["type"] not in _WANTED]
    inside = any(other.startswith((f"{path}.", f"{path}[")) for other in paths) if path else False
    return others if others or inside else problems


def _sentences(problems: Iterable[ErrorDetails], *, quoting: bool, known: Iterable[str]) -> Iterator[str]:
    """Say what is wrong with one value; in one sentence, which types it may have if it has another one."""
    wanted: dict[str, str] = {}
    for problem in problems:
        if problem["type"] in _WANTED:
            wanted.setdefault(_WANTED[problem["type"]], _given(problem, quoting=quoting))
        elif problem["type"] == "extra_forbidden" and (names := ", ".join(known)):
            yield f"is not a member{did_you_mean(str(problem['loc'][-1]), known)}; there are {names}"
        else:
            yield sentence(problem, quoting=quoting)
    if "a number" in wanted:
        wanted.pop("a whole number", None)
    if wanted:
        *others, last = wanted
        one_of = f"{', '.join(others)} or {last}" if others else last
        yield f"must be {one_of}, not {next(iter(wanted.values()))}"


def _path(problem: ErrorDetails, root: str, data: object) -> str:
    path = root
    where: Any = data
    for position, step in enumerate(problem["loc"], start=1):
        try:
            where = where[step]
        except (LookupError, TypeError):
            absent = position == len(problem["loc"]) and problem["type"] == "missing"
            if data is not None and step != _KEY and not absent:
                continue
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != _KEY:
            path += f".{step[:MAX_QUOTED_CHARS]}" if path else step[:MAX_QUOTED_CHARS]
    if problem["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        path += "." + problem.get("ctx", {})["discriminator"].strip("'")
    if problem["type"] == _DISAGREEMENT:
        path += f".{problem.get('ctx', {})['field_']}"
    return path.removeprefix(".")


def sentence(problem: ErrorDetails, *, quoting: bool = False) -> str:
    """Say what is wrong with a value, and what is allowed. Pydantic's error must have its input.

    With ``quoting``, a short string that should be a number is quoted, too: for settings, options and
    parameters of URLs, which are no prompts.
    """
    value = problem["input"]
    limits: dict[str, Any] = problem.get("ctx", {})
    match problem["type"]:
        case "missing" | "union_tag_not_found":
            return "is missing"
        case "extra_forbidden":
            return "is not a member of this object; leave it out"
        case "greater_than_equal":
            return f"{_number(value)} is below the minimum {_number(limits['ge'])}"
        case "greater_than":
            return f"{_number(value)} is too low; it must be above {_number(limits['gt'])}"
        case "less_than":
            return f"{_number(value)} is too high; it must be below {_number(limits['lt'])}"
        case "less_than_equal":
            return f"{_number(value)} is above the maximum {_number(limits['le'])}"
        case "finite_number":
            return f"{value} is not a finite number"
        case "too_short" | "string_too_short":
            return _too_short(value, limits["min_length"])
        case "too_long" | "string_too_long":
            return f"has {_count(value, len(value))}; at most {limits['max_length']:,} are allowed"
        case "literal_error" | "enum":
            return not_a_choice(value, limits["expected"])
        case "union_tag_invalid":
            return not_a_choice(limits["tag"], limits["expected_tags"])
        case "string_pattern_mismatch":
            return _misspelt(value, problem["loc"], limits["pattern"])
        case wanted if wanted in _WANTED:
            return f"must be {_WANTED[wanted]}, not {_given(problem, quoting=quoting)}"
        case time if time.startswith(("datetime", "timezone")):
            wanted = "a time with its time zone, such as 2026-01-31T12:00:00Z"
            short = isinstance(value, str) and len(value) <= MAX_QUOTED_CHARS
            return f"{value!r} is not {wanted}" if quoting and short else f"must be {wanted}"
        case "ip_any_network":
            return f"{_given(problem, quoting=quoting)} is not a network, such as 10.1.0.0/16"
        case "string_unicode":
            return "has half a surrogate pair, which no UTF-8 text can have; decode it with its own encoding"
        case "json_invalid":
            return f"is not JSON ({limits['error']})"
        case other if other == WRONG_SHAPE:
            return f"{problem['msg']}, not {kind(value)}"
        case _:
            return problem["msg"].removeprefix("Value error, ")


def _given(problem: ErrorDetails, *, quoting: bool) -> str:
    """Quote the given value if a number was wanted. A value given for text may be part of a prompt."""
    wanted, value = problem["type"], problem["input"]
    if isinstance(value, int | float) and wanted.startswith(("int", "float", "bool")):
        return _number(value)
    if (
        quoting
        and isinstance(value, str)
        and wanted.endswith(("parsing", "network"))
        and len(value) <= MAX_QUOTED_CHARS
    ):
        return repr(value)
    return kind(value)


def printable(text: str) -> str:
    """Return the text without characters that UTF-8 cannot encode."""
    return text.encode(errors="backslashreplace").decode()


def _number(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 2 * MAX_QUOTED_CHARS:
        # Python itself refuses to print long integers.
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, float) and value.is_integer() and abs(value) < _LONG:
        return str(int(value))
    return str(value)


def _too_short(value: Any, least: int) -> str:
    needed = f"at least {_count(value, least)} {'is' if least == 1 else 'are'} needed"
    return f"has {_count(value, len(value))}; {needed}" if value else f"is empty; {needed}"


def _count(value: object, number: int) -> str:
    noun = "character" if isinstance(value, str) else "item"
    return count_of(number, noun)


def not_a_choice(value: object, choices: str) -> str:
    """Say that a value is none of the choices. Only a short string is quoted."""
    if not isinstance(value, str):
        return f"must be one of {choices}, not {kind(value)}"
    if len(value) > MAX_QUOTED_CHARS:
        return f"must be one of {choices}"
    return f"{value!r} is not one of {choices}"


def _misspelt(value: object, place: Sequence[int | str], pattern: str) -> str:
    named = (step for step in (pattern, *reversed(place)) if isinstance(step, str) and step in _SPELLING)
    field = next(named, None)
    if field is None:
        return f"does not match {pattern}"
    wanted = _SPELLING[field]
    # Pydantic also takes bytes, and members of enumerations, for strings.
    if field in _NEVER_QUOTED or not isinstance(value, str) or len(value) > MAX_QUOTED_CHARS:
        return f"must be {wanted}"
    return f"{value!r} is not {wanted}"
