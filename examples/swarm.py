"""Agents that answer a question from documents together: a planner, three researchers, readers, and a writer.

    swarm ──> planner                 a model: splits the question into three
          ──> 3 x researcher          code: searches the index docs, names the documents that it has found
                    └──> reader       a model: answers from the passages
          ──> writer                  a model: makes one answer of the three findings

Code decides who is called and in which order; models only read and write. So a small model is enough, which
could not plan by calling tools. To let the model decide instead, leave out ``decide``.

    inferfleet local up &                       # or your own RabbitMQ, and Redis 8
    inferfleet worker --engine vllm --model Qwen/Qwen3-8B &
    inferfleet worker --engine vllm --model sentence-transformers/all-MiniLM-L6-v2 --pool embed &
    inferfleet index create docs --pool embed
    inferfleet index add docs README.md docs/*.md docs/*/*.md
    cd examples && inferfleet agent run swarm:swarm &
    inferfleet agent start swarm "What happens to a job when its worker dies?" --wait

Kill any of these processes and start it again: each run goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from inferfleet.agents import Agent, Decision, search_tool

POOL: Final = os.environ.get("SWARM_POOL", "default")
"""The pool whose model reads and writes."""

INDEX: Final = os.environ.get("SWARM_INDEX", "docs")

ANGLES: Final = ("", "How does it work?", "What are its limits?")
"""What is asked beside the question if the planner has not written three questions."""

SOURCES: Final = "Sources: "
"""What begins the last line of a researcher's answer."""

Messages = Sequence[Mapping[str, Any]]


def told(messages: Messages, role: str) -> list[str]:
    """Return what was said in a role: ``user`` is the input, ``tool`` the results of calls, in order."""
    return [message["content"] for message in messages if message["role"] == role]


def three_questions(plan: str, question: str) -> list[str]:
    """Read the planner's questions, one a line. Whatever it has written, there are three."""
    lines = [re.sub(r"^[\s\d.)*-]+", "", line).strip() for line in plan.splitlines()]
    planned = [line for line in dict.fromkeys(lines) if line.endswith("?")]
    return [*planned, *(f"{question} {angle}".strip() for angle in ANGLES)][:3]


def researched(messages: Messages) -> Decision:
    """Search; let a reader answer from the passages; add the names of their documents."""
    (question,), results = told(messages, "user"), told(messages, "tool")
    if not results:
        return [("search", {"query": question})]
    try:
        hits = json.loads(results[0])
    except json.JSONDecodeError:
        # Its result says why the search has failed.
        return results[0]
    if not hits:
        return f"The documents say nothing about it.\n{SOURCES}"
    if len(results) == 1:
        passages = "\n\n".join(hit["text"] for hit in hits)
        return [("reader", {"input": f"{passages}\n\nQuestion: {question}"})]
    return f"{results[1]}\n{SOURCES}{', '.join(dict.fromkeys(hit['document'] for hit in hits))}"


def next_step(messages: Messages) -> Decision:
    """Plan, then research, then write; and add the names of all documents."""
    (question,), results = told(messages, "user"), told(messages, "tool")
    match results:
        case []:
            return [("planner", {"input": question})]
        case [plan]:
            return [("researcher", {"input": each}) for each in three_questions(plan, question)]
        case [_, *findings] if len(findings) == len(ANGLES):
            texts = "\n\n".join(each.partition(f"\n{SOURCES}")[0] for each in findings)
            return [("writer", {"input": f"{texts}\n\nQuestion: {question}"})]
        case _:
            _, *findings, answer = results
            found = [each.rpartition(f"\n{SOURCES}")[2].split(", ") for each in findings if SOURCES in each]
            names = dict.fromkeys(name for some in found for name in some if name)
            return f"{answer}\n{SOURCES}{', '.join(names)}"


planner = Agent(
    name="planner",
    instructions="Split the user's question into three short questions. Write one a line, and nothing else.",
    options={"max_tokens": 96, "temperature": 0},
    pool=POOL,
)
reader = Agent(
    name="reader",
    instructions="Answer the question from the passages in two sentences. Say so if they do not answer it.",
    options={"max_tokens": 128, "temperature": 0},
    pool=POOL,
)
researcher = Agent(
    name="researcher", decide=researched, tools=[search_tool(INDEX, k=3), reader.as_tool()], pool=POOL
)
writer = Agent(
    name="writer",
    instructions="Make one short answer to the question from these findings. Add nothing to them.",
    options={"max_tokens": 192, "temperature": 0},
    pool=POOL,
)
swarm = Agent(
    name="swarm",
    decide=next_step,
    tools=[planner.as_tool(), researcher.as_tool(), writer.as_tool()],
    pool=POOL,
)
