"""Imported only by the process from which engine cores and servers are forked, before the first of them."""

from __future__ import annotations

import vllm.entrypoints.openai.api_server
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker  # noqa: F401
from tests.engine.quick_starts import start_quickly

start_quickly("fork")
