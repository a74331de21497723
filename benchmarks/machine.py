"""The machine, the versions, and the services that a benchmark runs on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

from contender import Contender

from inferfleet.local.services import Services, ServicesChoice, running_services
from inferfleet.local.services.launcher import source_of

PEER_LIBRARIES = (
    "taskiq",
    "taskiq-aio-pika",
    "taskiq-redis",
    "faststream",
    "celery",
    "kombu",
    "dramatiq",
    "arq",
)
OUR_LIBRARIES = ("aio-pika", "aiormq", "redis", "hiredis", "uvloop", "pydantic")


def benchmark_services(*, management: bool = False) -> AbstractContextManager[Services]:
    """Private RabbitMQ and Redis: servers of this machine if there are any, else what ``auto`` finds.

    A container's network would be measured along; given URLs may be in use by others.
    """
    native = source_of(ServicesChoice.NATIVE).unavailable_reason() is None
    choice = ServicesChoice.NATIVE if native else ServicesChoice.AUTO
    return running_services(choice, management=management)


def description(services: Services) -> dict[str, str]:
    """What has to be known to compare a figure with another one."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "services": services.description,
        **{name: version(name) for name in OUR_LIBRARIES},
    }


def peer_versions(contenders: Iterable[Contender]) -> dict[str, str]:
    """The versions of the other libraries, as the environments have them that they run in."""
    versions: dict[str, str] = {}
    for python in {contender.python for contender in contenders} - {Path(sys.executable)}:
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"],
            check=True,
            capture_output=True,
            text=True,
        )
        installed = dict(line.split("==") for line in listed.stdout.splitlines() if "==" in line)
        versions |= {name: installed[name] for name in PEER_LIBRARIES if name in installed}
    return versions


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
