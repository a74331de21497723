"""Translates the items of OpenAI's Responses API into the messages of a chat, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

from inferfleet.producer.openai.lists import list_page
from inferfleet.producer.openai.refusals import RefusedError, bad_request
from inferfleet.schemas.near_match import did_you_mean
from inferfleet.schemas.problems import MAX_QUOTED_CHARS, kind, not_a_choice

Item = dict[str, Any]
Message = dict[str, Any]

ROLES: Final = ("user", "assistant", "system", "developer")
DETAILS: Final = ("low", "high", "auto", "original")
TEXTS: Final = ("input_text", "output_text", "text")


def read_items(given: object, place: str, *, prefix: str) -> list[Item]:
    """Read items, or a string that stands for a user's message, and fill in what they leave out.

    An item without an id of its own gets one that begins with ``prefix``.

    Raises:
        RefusedError: An item is invalid, or of a type that a queue does not support.

    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise _wrong(place, f"must be a string or a list of items, not {kind(given)}")
    items = cast("list[object]", given)
    if not items:
        raise _wrong(place, "must not be empty")
    read: dict[str, Item] = {}
    for number, given_item in enumerate(items):
        name = f"{prefix}_{number}"
        item = _read(given_item, f"{place}[{number}]", name)
        if item["id"] in read:
            item["id"] = _made_id(item["type"], name)
        read[item["id"]] = item
    return list(read.values())


def messages_of(items: Iterable[Item]) -> list[Message]:
    """Make the messages of a chat. The parts of one answer become one message."""
    messages: list[Message] = []
    for item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                message = _answer(messages, lacks=("content", "tool_calls"))
                message["content"] = _content(item["content"])
            case "message":
                messages.append({"role": item["role"], "content": _content(item["content"])})
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                _answer(messages).setdefault("tool_calls", []).append(call)
            case "reasoning":
                if text := "".join(part["text"] for part in item["content"]):
                    _answer(messages, lacks=("content", "tool_calls", "reasoning"))["reasoning"] = text
            case _:
                output = item["output"]
                content = output if isinstance(output, str) else _content(output)
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
    # Reasoning that led to nothing is no message.
    return [message for message in messages if message.keys() - {"role", "reasoning"}]


def items_of(messages: Iterable[Mapping[str, Any]], *, prefix: str) -> list[Item]:
    """Make the items of messages."""
    items: list[Item] = []
    for message in messages:
        content, role = message.get("content"), message["role"]
        if role == "tool":
            output = content if isinstance(content, str) else _parts_of(content, role)
            items.append(
                {
                    "type": "function_call_output",
                    "call_id": message.get("tool_call_id") or "",
                    "output": output,
                }
            )
            continue
        if reasoning := message.get("reasoning"):
            part = {"type": "reasoning_text", "text": reasoning}
            items.append({"type": "reasoning", "summary": [], "content": [part]})
        if content or not message.get("tool_calls"):
            items.append({"type": "message", "role": role, "content": _parts_of(content, role)})
        items += [
            {"type": "function_call", "call_id": call["id"], **call["function"]}
            for call in message.get("tool_calls") or ()
        ]
    return [
        {"id": _made_id(item["type"], f"{prefix}_{number}"), "status": "completed", **item}
        for number, item in enumerate(items)
    ]


def output_text(text: str) -> Item:
    """Make the part of a message that holds a text of the model."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def page_of(items: Sequence[Item], *, after: str | None, limit: int, ascending: bool) -> dict[str, Any]:
    """Make a page of items, which are given in their order.

    Raises:
        RefusedError: There is no item with the id ``after``.

    """
    listed = items if ascending else items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise bad_request(
                f"after: there is no item {after[:MAX_QUOTED_CHARS]!r} in this list", param="after"
            )
        listed = listed[places[0] + 1 :]
    return list_page(listed[:limit], more=len(listed) > limit)


def _answer(messages: list[Message], *, lacks: Sequence[str] = ()) -> Message:
    """Return the last message, if it is an answer that lacks these members, or else begin one."""
    if not messages or messages[-1]["role"] != "assistant" or any(name in messages[-1] for name in lacks):
        messages.append({"role": "assistant"})
    return messages[-1]


def _read(given: object, place: str, name: str) -> Item:
    if not isinstance(given, dict):
        raise _wrong(place, f"must be an object, not {kind(given)}")
    item = cast("Item", given)
    what = item.get("type", "message" if "role" in item else None)
    read = _READERS.get(what) if isinstance(what, str) else None
    if read is None or not isinstance(what, str):
        told = f"{what[:MAX_QUOTED_CHARS]!r}" if isinstance(what, str) else kind(what)
        raise _wrong(
            f"{place}.type",
            f"{told} is not supported{_instead(what)}; the types are {', '.join(_READERS)}",
        )
    given_id = item.get("id")
    if given_id is not None and not isinstance(given_id, str):
        raise _wrong(f"{place}.id", f"must be a string, not {kind(given_id)}")
    known = {"id": given_id or _made_id(what, name), "type": what, "status": "completed"}
    return {**known, **read(item, place)}


def _made_id(what: str, name: str) -> str:
    return f"{_ID_PREFIXES[what]}_{name}"


def _instead(what: object) -> str:
    if what == "item_reference":
        return ": send the item itself, or name its response as previous_response_id"
    return did_you_mean(what, _READERS) if isinstance(what, str) else ""


def _message(item: Item, place: str) -> Item:
    role = item.get("role")
    if role not in ROLES:
        raise _wrong(f"{place}.role", not_a_choice(role, ", ".join(ROLES)))
    return {"role": role, "content": _read_content(item.get("content"), f"{place}.content", role)}


def _call(item: Item, place: str) -> Item:
    return {name: _text(item, name, place) for name in ("call_id", "name", "arguments")}


def _call_output(item: Item, place: str) -> Item:
    output = item.get("output")
    if not isinstance(output, str):
        output = _read_content(output, f"{place}.output", "user")
    return {"call_id": _text(item, "call_id", place), "output": output}


def _reasoning(item: Item, place: str) -> Item:
    """Read reasoning, without its summary and without what only OpenAI can decrypt."""
    parts = item.get("content")
    if parts is None:
        parts = []
    if not isinstance(parts, list):
        raise _wrong(f"{place}.content", f"must be a list, not {kind(parts)}")
    content: list[Item] = []
    for number, part in enumerate(cast("list[object]", parts)):
        if not isinstance(part, dict):
            raise _wrong(f"{place}.content[{number}]", f"must be an object, not {kind(part)}")
        text = _text(cast("Item", part), "text", f"{place}.content[{number}]")
        content.append({"type": "reasoning_text", "text": text})
    return {"summary": [], "content": content}


def _read_content(given: object, place: str, role: str) -> list[Item]:
    if isinstance(given, str):
        return [output_text(given) if role == "assistant" else {"type": "input_text", "text": given}]
    if not isinstance(given, list):
        raise _wrong(place, f"must be a string or a list of content parts, not {kind(given)}")
    parts = cast("list[object]", given)
    return [_read_part(part, f"{place}[{number}]", role) for number, part in enumerate(parts)]


def _read_part(given: object, place: str, role: str) -> Item:
    if not isinstance(given, dict):
        raise _wrong(place, f"must be an object, not {kind(given)}")
    part = cast("Item", given)
    what = part.get("type")
    if role == "assistant":
        if what == "refusal":
            return {"type": what, "refusal": _text(part, "refusal", place)}
        if what in TEXTS:
            return output_text(_text(part, "text", place))
        raise _wrong(f"{place}.type", "must be output_text or refusal in a message from the assistant")
    match what:
        case str() if what in TEXTS:
            return {"type": "input_text", "text": _text(part, "text", place)}
        case "input_image":
            return _image(part, place)
        case _:
            raise _wrong(
                f"{place}.type", "must be input_text or input_image; send the text of a file as input_text"
            )


def _image(part: Item, place: str) -> Item:
    if part.get("file_id") is not None:
        raise _wrong(
            f"{place}.file_id", "is not supported: send the image as image_url, which may be a data URL"
        )
    detail = part.get("detail", "auto")
    if detail not in DETAILS:
        raise _wrong(f"{place}.detail", not_a_choice(detail, ", ".join(DETAILS)))
    return {"type": "input_image", "image_url": _text(part, "image_url", place), "detail": detail}


def _text(item: Item, name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        problem = f"must be a string, not {kind(value)}" if name in item else "is missing"
        raise _wrong(f"{place}.{name}", problem)
    return value


def _content(parts: Sequence[Item]) -> str | list[dict[str, Any]]:
    """Make the content of a message: a string if possible, because not all chat templates read lists."""
    match parts:
        case []:
            return ""
        case [{"text": str(text)}]:
            return text
        case _:
            return [_part_of_chat(part) for part in parts]


def _part_of_chat(part: Item) -> dict[str, Any]:
    match part["type"]:
        case "input_image":
            return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part["detail"]}}
        case "refusal":
            return {"type": "refusal", "refusal": part["refusal"]}
        case _:
            return {"type": "text", "text": part["text"]}


def _parts_of(content: object, role: str) -> list[Item]:
    """Make the parts of an item from the content of a message. Parts of other kinds are left out."""
    said: Callable[[str], Item] = (
        output_text if role == "assistant" else lambda text: {"type": "input_text", "text": text}
    )
    if not isinstance(content, list):
        return [said(content if isinstance(content, str) else "")]
    parts: list[Item] = []
    for part in cast("list[dict[str, Any]]", content):
        match part:
            case {"type": "text", "text": str(text)}:
                parts.append(said(text))
            case {"type": "refusal", "refusal": str(text)}:
                parts.append({"type": "refusal", "refusal": text})
            case {"type": "image_url", "image_url": {"url": str(url), **more}}:
                detail = more.get("detail", "auto")
                parts.append({"type": "input_image", "image_url": url, "detail": detail})
            case _:
                pass
    return parts


def _wrong(place: str, problem: str) -> RefusedError:
    return bad_request(f"{place}: {problem}", param=place)


_READERS: Final[Mapping[str, Callable[[Item, str], Item]]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "reasoning": _reasoning,
}

_ID_PREFIXES: Final[Mapping[str, str]] = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}
"""The beginning of the id of an item of each kind."""
