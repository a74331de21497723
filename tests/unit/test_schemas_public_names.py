"""What ``inferfleet.schemas`` offers: a dozen names at most, sorted, each one there."""

from __future__ import annotations

import subprocess
import sys

from inferfleet import schemas


def test_the_public_names_are_these() -> None:
    assert schemas.__all__ == [
        "Endpoint",
        "Failure",
        "FailureCode",
        "Job",
        "JobRecord",
        "JobState",
        "JournalEntry",
        "Priority",
        "Result",
        "Timings",
        "Usage",
    ]
    assert schemas.__all__ == sorted(schemas.__all__)
    for name in schemas.__all__:
        assert hasattr(schemas, name)


def test_the_contract_loads_no_network_library() -> None:
    code = (
        "import sys, inferfleet.schemas.documents, inferfleet.schemas.request, inferfleet.schemas.settings;"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"aio_pika", "redis", "aiohttp"} & set(loaded.stdout.split())
