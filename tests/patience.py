"""How long tests wait."""

from __future__ import annotations

import os

PATIENCE_S = float(os.environ.get("TEST_PATIENCE_S", "100"))
"""How long a test waits for something that should happen at once, on a machine that has much else to do.

Less than pytest's own limit of a test, so that a test that waits in vain says what it waited for.
"""
