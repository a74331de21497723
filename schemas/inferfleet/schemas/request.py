"""The OpenAI request bodies, checked before a job is accepted.

Known fields are typed and bounded as OpenAI's reference has them; unknown ones pass through to the
engine untouched, so that vLLM's own extensions work. The body itself is never rewritten: these
models only judge it.
"""

from __future__ import annotations
