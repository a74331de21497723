"""What the admission of a namespace with ``pod-security.kubernetes.io/enforce: restricted`` says of a pod.

Follows https://kubernetes.io/docs/concepts/security/pod-security-standards as of Kubernetes 1.37.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = {"RuntimeDefault", "Localhost"}
APPARMOR = {None, *SECCOMP}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def violations(spec: Object) -> list[str]:
    """Why a pod with this spec is refused; empty if it is admitted."""
    return [*_of_the_pod(spec), *(problem for each in _containers(spec) for problem in _of_one(each, spec))]


def _containers(spec: Object) -> list[Object]:
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return [container for kind in kinds for container in spec.get(kind) or []]


def _of_the_pod(spec: Object) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes") or []:
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']}: {kind}"
    security = spec.get("securityContext") or {}
    for sysctl in security.get("sysctls") or []:
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _of_a_context(security, "pod")


def _of_one(container: Object, spec: Object) -> Iterator[str]:
    name = container["name"]
    own, pods = container.get("securityContext") or {}, spec.get("securityContext") or {}
    yield from _of_a_context(own, name)
    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield f"{name}: capabilities are not dropped"
    if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"{name}: capabilities are added"
    if own.get("procMount") not in {None, "Default"}:
        yield f"{name}: procMount"
    if own.get("runAsNonRoot", pods.get("runAsNonRoot")) is not True:
        yield f"{name}: runAsNonRoot is not true"
    if (own.get("seccompProfile") or pods.get("seccompProfile") or {}).get("type") not in SECCOMP:
        yield f"{name}: seccompProfile is not given"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield f"{name}: hostPort"
    handlers = [container.get(f"{kind}Probe") for kind in ("liveness", "readiness", "startup")]
    handlers += (container.get("lifecycle") or {}).values()
    for handler in filter(None, handlers):
        if any((handler.get(action) or {}).get("host") for action in ("httpGet", "tcpSocket")):
            yield f"{name}: a probe or hook names a host"


def _of_a_context(security: Object, name: str) -> Iterator[str]:
    if security.get("runAsUser") == 0:
        yield f"{name}: runAsUser is 0"
    if (security.get("seccompProfile") or {"type": "RuntimeDefault"}).get("type") not in SECCOMP:
        yield f"{name}: seccompProfile"
    if (security.get("appArmorProfile") or {}).get("type") not in APPARMOR:
        yield f"{name}: appArmorProfile"
    selinux = security.get("seLinuxOptions") or {}
    if selinux.get("type") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{name}: seLinuxOptions"
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{name}: hostProcess"
