"""The doctor's knowledge of versions with vulnerabilities, which no machine should run for a test."""

from __future__ import annotations

import pytest

from inferfleet.producer.doctor.services import server_findings
from inferfleet.schemas.settings import ServiceSettings
from inferfleet.wire.redis.server_info import ServerInfo


@pytest.mark.parametrize(
    ("product", "version", "patched"),
    [
        ("Redis", "7.0.15", None),
        ("Redis", "7.4.8", "7.4.9"),
        ("Redis", "7.4.9", None),
        ("Redis", "8.6.2", "8.6.3"),
        ("Redis", "8.6.10", None),
        ("Redis", "8.8.0", None),
        ("Redis", "9", None),
        ("Redis", "", None),
        ("Valkey", "8.1.6", "8.1.7"),
        ("Valkey", "9.0.4", None),
    ],
)
def test_a_vulnerable_patch_level_is_found(product: str, version: str, patched: str | None) -> None:
    info = ServerInfo(
        version="7.2.4" if product == "Valkey" else version,
        product=product,
        product_version=version,
        role="master",
        replicas=0,
        used_memory_bytes=0,
        maxmemory_bytes=0,
        eviction_policy="noeviction",
        append_only=True,
        write_errors=(),
    )
    found = list(server_findings(info, ServiceSettings()))
    assert [finding.check for finding in found] == ["redis_version"] * (patched is not None)
    for finding in found:
        assert finding.what.startswith(f"{product} {version} has known vulnerabilities")
        assert finding.remedy.startswith(f"use {patched} or later")
