"""The headers of a delivery, as Standard Webhooks say: id, time, and a signature by each secret in use."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from standardwebhooks import Webhook

SECRET_BYTES: Final = 32


def new_secret() -> str:
    """Make a secret."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signed(payload: bytes, *, event_id: str, at: datetime, by: Sequence[str]) -> dict[str, str]:
    """Sign a payload at a time by each secret, and return the headers of its request."""
    signatures = (Webhook(secret).sign(event_id, at, payload.decode()) for secret in by)
    return {
        "content-type": "application/json",
        "user-agent": "inferfleet-webhooks",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
