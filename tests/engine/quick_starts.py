"""Lets vLLM's processes start in seconds: they are forked from one that has imported vLLM.

On the CPU, vLLM starts its engine core and its worker as new interpreters, which import it for ten seconds
each. Workers that a test runs as processes of their own still do that.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import BaseContext

SERVER = "tests.engine.process_server"


def start_quickly(method: str) -> None:
    """Let vLLM start its processes from here by this method of ``multiprocessing``."""

    def context() -> BaseContext:
        return multiprocessing.get_context(method)

    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and "get_mp_context" in vars(module):
            module.get_mp_context = context  # type: ignore[attr-defined]
