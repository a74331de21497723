"""Names the beginnings of a prompt: two prompts with a beginning in common have its name in common. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from inferfleet.schemas.job import Job

LENGTHS: Final = 8
"""How many beginnings of a prompt have names: those of ``least`` characters, twice as many, and so on."""

_AHEAD: Final = ("model", "tools", "documents", "chat_template", "chat_template_kwargs")
"""Fields that change the prompt ahead of its messages, or the cache that it is in."""


def beginnings(job: Job, *, least: int) -> list[str]:
    """Name the beginnings of a job's prompt from ``least`` characters on, the longest first.

    Jobs of different tenants have none in common, because their caches are kept apart. Characters are those
    of the messages, or of the prompt, as JSON. Only chats and completions have such a prompt.
    """
    prompt: Any = job.body.get("messages", job.body.get("prompt"))
    if prompt is None:
        return []
    text = json.dumps(prompt, ensure_ascii=False)
    ahead = [job.tenant, job.endpoint, *(job.body.get(name) for name in _AHEAD)]
    digest = hashlib.blake2b(json.dumps(ahead).encode(), digest_size=16)
    names: list[str] = []
    begin, end = 0, least
    while end <= len(text) and len(names) < LENGTHS:
        digest.update(text[begin:end].encode(errors="surrogatepass"))
        names.append(digest.hexdigest())
        begin, end = end, 2 * end
    return names[::-1]
