"""The Redis of the simulation answers as a real one: what a simulated fleet sends is sent to both."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from inferfleet.local.services import Services
from inferfleet.local.simulation.scenarios import SCENARIOS

RECORD = """
import os, pickle, sys
from inferfleet.local.simulation.plan import Plan
from inferfleet.local.simulation.play import play
from inferfleet.local.simulation.world import World
world = World()
world.redis.log = []
world.build()
play(world, Plan.parse(sys.argv[1]))
sys.stdout.buffer.write(pickle.dumps([(at, command, plain) for at, command, answer in world.redis.log
    for plain in [("error", str(answer)) if isinstance(answer, Exception) else answer]]))
sys.stdout.flush()
os._exit(0)
"""

DATABASE = 13
"""No other test uses it."""

NOT_LOADED = b"0" * 40
"""The real server may have scripts of other tests."""

CLOCK = b"({redis.call('GET', 'now-s'), redis.call('GET', 'now-us')})"

ANOTHER_ANSWER = {b"HELLO", b"CLIENT", b"INFO", b"TIME", b"XREAD", b"SCAN", b"XADD", b"TTL"}
"""Commands that a server answers in its own way, or by its own clock."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_real_redis_answers_the_same(services: Services, scenario: str) -> None:
    recorded = subprocess.run(
        [sys.executable, "-c", RECORD, f"{scenario}.0/150:repeat=w1-redis/300:crash=w2"],
        stdout=subprocess.PIPE,
        check=True,
    )
    real = redis.Redis.from_url(services.redis_url, db=DATABASE, protocol=3)
    real.flushdb()
    real.response_callbacks.clear()
    names: dict[bytes, bytes] = {}
    compared = 0
    for at_us, command, answer in pickle.loads(recorded.stdout):
        verb = command[0].upper()
        if verb == b"SCRIPT":
            text = command[2].replace(b"redis.call('TIME')", CLOCK)
            names[answer] = real.execute_command("SCRIPT LOAD", text)
        elif verb == b"EVALSHA":
            real.mset({"now-s": at_us // 1_000_000, "now-us": at_us % 1_000_000})
            command = [verb, names.get(command[1], NOT_LOADED), *command[2:]]
        if verb == b"XADD":
            real.execute_command(*command)
        if verb in ANOTHER_ANSWER or verb == b"SCRIPT" or (verb == b"XRANGE" and command[2] != b"-"):
            continue
        try:
            real_answer = real.execute_command(*command)
        except ResponseError as error:
            real_answer = ("error", str(error))
        compared += 1
        assert comparable(verb, real_answer) == comparable(verb, answer), command
    real.flushdb()
    real.close()
    assert compared > 100


def comparable(verb: bytes, answer: Any) -> Any:
    """Without what a clock makes: the ids of lines."""
    if verb in {b"XRANGE", b"XREVRANGE"}:
        return [fields for _, fields in answer]
    if verb == b"SET":
        return answer and "OK"
    return "error" if isinstance(answer, tuple) else answer
