"""The largest numbers that Redis, RabbitMQ and timers can calculate with.

A service would refuse a larger number only when it uses it, in the middle of other work.
"""

from typing import Final

LONGEST_S: Final = 100 * 366 * 24 * 3600
"""A hundred years. Redis refuses times that it cannot add to its own, and timers overflow."""

MOST: Final = 2**53
"""The largest integer of a script in Redis."""
