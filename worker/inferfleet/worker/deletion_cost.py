"""How much it would cost to delete this worker's pod, told to Kubernetes.

When a ReplicaSet loses replicas, the controller deletes the ready pod with the lowest
``controller.kubernetes.io/pod-deletion-cost`` first. With the tokens in flight as the cost that is the idlest
worker. It is a preference and no promise: the journal is what keeps answers whose pod is deleted anyway.
A StatefulSet does not look at it.
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
"""A cost that differs by less than this share is not written: every write goes to all who watch pods."""

REQUEST_TIMEOUT_S = 5.0

REFUSED = (403, 404)
"""Not allowed, or no pod of that name: trying again would not help."""


def deletion_cost(runs: Iterable[JobRun]) -> int:
    """Say what is in flight: all tokens of all running answers, and one more for each job.

    They are what another worker would have to take in again before it could go on.
    """
    return min(sum(1 + run.answer.tokens for run in runs if run.attempt and not run.paused), HIGHEST_COST)


def worth_writing(*, written: int | None, cost: int) -> bool:
    """Whether the cost differs enough from the one that Kubernetes knows. Idle or not always does."""
    return written is None or abs(cost - written) > SIGNIFICANT_CHANGE * written


async def keep_deletion_cost(settings: WorkerSettings, *, cost: Callable[[], int]) -> None:
    """Keep the annotation of this worker's own pod near ``cost()``, until cancelled.

    At most one request in ``deletion_cost_interval_s``. Ends at once outside Kubernetes, and, with one line
    in the log, when the service account may not do it. A failed request is only repeated at the next
    interval, so nothing here can disturb the worker.
    """
    account = ServiceAccount(settings.service_account_dir)
    if not (settings.pod_name and settings.pod_namespace and account.mounted()):
        return
    url = (
        f"{settings.kubernetes_url.rstrip('/')}/api/v1/namespaces/{settings.pod_namespace}"
        f"/pods/{settings.pod_name}"
    )
    # What the pod has may be left from before its container was restarted.
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
                # TimeoutError is an OSError, and so is what ssl raises.
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
    """What Kubernetes mounts into a pod. It renews the token in place, so it is read for each request."""

    def __init__(self, folder: Path) -> None:
        self._token = folder / "token"
        self._authority = folder / "ca.crt"

    def mounted(self) -> bool:
        """Whether this pod was given any."""
        return self._token.is_file()

    def token(self) -> str:
        """The bearer token as it is now."""
        return self._token.read_text().strip()

    def trust(self) -> ssl.SSLContext:
        """Whom to believe to be the API server."""
        return ssl.create_default_context(cafile=str(self._authority) if self._authority.is_file() else None)
