"""How far numbers may go that Redis, RabbitMQ and timers have to count with.

A service refuses what is beyond only when it comes to it, in the middle of other work.
"""

from typing import Final

LONGEST_S: Final = 100 * 366 * 24 * 3600
"""A hundred years: Redis refuses times that it cannot add to its own, and timers overflow."""

MOST: Final = 2**53
"""A script in Redis has no whole numbers beyond that."""
