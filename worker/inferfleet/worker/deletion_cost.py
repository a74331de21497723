"""Tells Kubernetes what it would cost to delete this worker's pod.

When a ReplicaSet scales in, its controller first deletes the ready pod with the lowest
``controller.kubernetes.io/pod-deletion-cost``. With the tokens in flight as the cost, that is the idlest
worker. This is a preference, not a guarantee: the journal preserves the answers of a pod that is deleted
anyway. StatefulSets ignore it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp

from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.job_run import JobRun

logger = logging.getLogger(__name__)

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

HIGHEST_COST = 2**31 - 1
"""The annotation is an int32; a pod with anything else in it counts as 0."""

SIGNIFICANT_CHANGE = 0.1
"""A cost that differs by less than this share is not written: each write notifies all watchers of pods."""

REQUEST_TIMEOUT_S = 5.0

REFUSED = (403, 404)
"""Forbidden, or no pod of that name: a retry would not help."""


def deletion_cost(runs: Iterable[JobRun]) -> int:
    """Return the tokens in flight: all tokens of all running answers, plus one for each job.

    Another worker would have to prefill them before it could resume the answers.
    """
    return min(sum(1 + run.answer.tokens for run in runs if run.attempt and not run.paused), HIGHEST_COST)


def worth_writing(*, written: int | None, cost: int) -> bool:
    """Return whether the cost differs enough from Kubernetes' value. A change from or to idle always does."""
    return written is None or abs(cost - written) > SIGNIFICANT_CHANGE * written


async def keep_deletion_cost(settings: WorkerSettings, *, cost: Callable[[], int]) -> None:
    """Keep the annotation of this worker's own pod near ``cost()``, until cancelled.

    Makes at most one request per ``deletion_cost_interval_s``. Returns at once outside Kubernetes, and, with
    a log line, if the service account may not patch pods. Repeats a failed request only at the next interval,
    so that it cannot disturb the worker.
    """
    account = ServiceAccount(settings.service_account_dir)
    if not (settings.pod_name and settings.pod_namespace and account.mounted()):
        return
    url = (
        f"{settings.kubernetes_url.rstrip('/')}/api/v1/namespaces/{settings.pod_namespace}"
        f"/pods/{settings.pod_name}"
    )
    # The pod's value may be from before a restart of its container.
    written: int | None = None
    reachable = True
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        while True:
            await asyncio.sleep(settings.deletion_cost_interval_s)
            now = cost()
            if not worth_writing(written=written, cost=now):
                continue
            try:
                async with client.patch(
                    url,
                    json={"metadata": {"annotations": {ANNOTATION: str(now)}}},
                    headers={
                        "Authorization": f"Bearer {account.token()}",
                        "Content-Type": "application/merge-patch+json",
                    },
                    ssl=account.trust(),
                ) as answer:
                    if answer.status in REFUSED:
                        logger.warning(
                            "Kubernetes refuses this worker's deletion cost (%d): it needs a role with the "
                            "verb patch on pods. Scale-in will not spare busy workers",
                            answer.status,
                        )
                        return
                    answer.raise_for_status()
            except (aiohttp.ClientError, OSError) as error:
                # TimeoutError is an OSError, and so are the errors of ssl.
                logger.log(
                    logging.WARNING if reachable else logging.DEBUG,
                    "cannot update this worker's deletion cost: %s",
                    str(error) or type(error).__name__,
                )
                reachable = False
            else:
                if not reachable:
                    logger.info("updating this worker's deletion cost works again")
                written, reachable = now, True


class ServiceAccount:
    """The pod's service account. Kubernetes renews its token in place, so each request reads the file."""

    def __init__(self, folder: Path) -> None:
        self._token = folder / "token"
        self._authority = folder / "ca.crt"

    def mounted(self) -> bool:
        """Whether this pod has a service account."""
        return self._token.is_file()

    def token(self) -> str:
        """Read the current bearer token."""
        return self._token.read_text().strip()

    def trust(self) -> ssl.SSLContext:
        """Make the TLS context that verifies the API server."""
        return ssl.create_default_context(cafile=str(self._authority) if self._authority.is_file() else None)
