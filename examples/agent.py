"""An agent with two tools, whose conversation lives in the fleet and not in this process.

    inferfleet local up &                                  # or your own RabbitMQ and Redis
    inferfleet worker --engine vllm --model Qwen/Qwen3-8B --engine-args '{"tool_call_parser": "hermes"}' &
    python examples/agent.py --session me "What is 6 * 7, and what time is it in Tokyo?"

Stop it at any point and start it again with the same session: it goes on where it was. The simulated
engine never decides to call a tool by itself; ``--force calculator clock`` makes it call each of them once.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import operator
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from inferfleet.producer import Fleet

MAX_STEPS = 10
"""A model that only ever calls tools is stopped here."""

OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
}


def calculator(expression: str) -> str:
    """Work out + - * / % and parentheses, and nothing else: a model's text must never be run as code."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case _:
                raise ValueError(f"only numbers and + - * / % are understood, not {ast.unparse(node)!r}")

    return str(value(ast.parse(expression, mode="eval").body))


def clock(timezone: str = "UTC") -> str:
    """Say what time it is somewhere."""
    return datetime.now(ZoneInfo(timezone)).isoformat(timespec="seconds")


TOOLS: dict[str, Callable[..., str]] = {"calculator": calculator, "clock": clock}


def described(name: str, description: str, argument: str, example: str) -> dict[str, Any]:
    """Describe a tool with one argument, as OpenAI's API has it."""
    schema = {"type": "object", "properties": {argument: {"type": "string", "description": example}}}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


DESCRIPTIONS = [
    described("calculator", "Work out an arithmetic expression.", "expression", "for example 3 * (4 + 5)"),
    described("clock", "Tell the time.", "timezone", "an IANA name, for example Asia/Tokyo"),
]


def call(function: dict[str, Any]) -> str:
    """Run a tool as the model asked. What goes wrong is an answer too: the model can try again."""
    try:
        return TOOLS[function["name"]](**json.loads(function["arguments"] or "{}"))
    except Exception as error:  # the model's arguments may be anything
        return f"error: {type(error).__name__}: {error}"


async def ask(fleet: Fleet, session_id: str, question: str, *, pool: str, force: list[str]) -> str:
    """Ask, run the tools that the model wants, and return its answer."""
    session = fleet.session(session_id)
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for _ in range(MAX_STEPS):
        body: dict[str, Any] = {"tools": DESCRIPTIONS}
        if force:
            body["tool_choice"] = {"type": "function", "function": {"name": force.pop(0)}}
        # Only what is new: the worker brings the rest of the conversation.
        job = await session.send(messages, body=body, pool=pool)
        result = (await fleet.wait(job)).raise_for_state()
        message = (result.response or {})["choices"][0]["message"]
        if not message.get("tool_calls"):
            return result.text
        messages = []
        for wanted in message["tool_calls"]:
            outcome = call(wanted["function"])
            print(f"{wanted['function']['name']}({wanted['function']['arguments']}) = {outcome}")
            messages.append({"role": "tool", "tool_call_id": wanted["id"], "content": outcome})
        # The agent's own notes live beside the conversation.
        await session.patch_state({"last_tool": message["tool_calls"][-1]["function"]["name"]})
    raise SystemExit(f"no answer after {MAX_STEPS} steps")


async def main() -> None:
    """Read the command line and ask."""
    parser = argparse.ArgumentParser(description="An agent with a calculator and a clock.")
    parser.add_argument("question")
    parser.add_argument("--session", default="agent")
    parser.add_argument("--pool", default="default")
    parser.add_argument("--force", nargs="*", default=[], choices=TOOLS, help="tools that must be called")
    options = parser.parse_args()
    async with Fleet.connect() as fleet:
        answer = await ask(
            fleet, options.session, options.question, pool=options.pool, force=list(options.force)
        )
        print(answer)


if __name__ == "__main__":
    asyncio.run(main())
