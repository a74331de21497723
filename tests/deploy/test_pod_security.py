"""The stand-in for the admission of "restricted" refuses what the API server refuses."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from tests.deploy.pod_security import violations

ADMITTED: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "one",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}


def test_a_pod_that_asks_for_nothing_is_admitted() -> None:
    assert violations(ADMITTED) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hostNetwork", True),
        ("volumes", [{"name": "host", "hostPath": {"path": "/"}}]),
        ("volumes", [{"name": "share", "nfs": {"server": "there"}}]),
        ("securityContext.runAsNonRoot", None),
        ("securityContext.runAsUser", 0),
        ("securityContext.seccompProfile", None),
        ("securityContext.seccompProfile.type", "Unconfined"),
        ("securityContext.appArmorProfile", {"type": "Unconfined"}),
        ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("containers.securityContext.privileged", True),
        ("containers.securityContext.allowPrivilegeEscalation", None),
        ("containers.securityContext.capabilities.drop", ["NET_RAW"]),
        ("containers.securityContext.capabilities.add", ["SYS_PTRACE"]),
        ("containers.securityContext.runAsNonRoot", False),
        ("containers.securityContext.procMount", "Unmasked"),
        ("containers.securityContext.seLinuxOptions", {"type": "spc_t"}),
        ("containers.ports", [{"containerPort": 80, "hostPort": 80}]),
        ("containers.livenessProbe", {"httpGet": {"port": 80, "host": "10.0.0.1"}}),
        ("containers.lifecycle", {"preStop": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}}),
    ],
)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_each_control_is_checked(path: str, value: Any, kind: str) -> None:
    spec = deepcopy(ADMITTED)
    if kind == "initContainers":
        spec["initContainers"] = deepcopy(spec["containers"])
    *folders, field = path.split(".")
    at: Any = spec
    for folder in folders:
        at = at[kind][0] if folder == "containers" else at[folder]
    if value is None:
        del at[field]
    else:
        at[field] = value
    assert violations(spec) != []
