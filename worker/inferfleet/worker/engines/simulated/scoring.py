"""The score of two texts: a number drawn from the digest of both."""

from __future__ import annotations

import struct

from inferfleet.worker.engines.simulated.prompt import Prompt


def score(pair: Prompt) -> float:
    """Return a number from 0 to 1, rounded to a 32-bit float. Equal pairs have equal scores."""
    drawn = int.from_bytes(pair.key[:4], "big") / (2**32 - 1)
    rounded: float
    (rounded,) = struct.unpack("<f", struct.pack("<f", drawn))
    return rounded
