"""How ``inferfleet model probe`` ends: as its help says, and without RabbitMQ and Redis."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("engine_args", "code", "says"),
    [
        ('{"weights": -1}', 1, "the model 'simulated' is not fit: it answers every prompt with one token"),
        ('{"shade": 7}', 2, "no argument 'shade'"),
    ],
    ids=["not fit", "wrong use"],
)
def test_a_model_that_is_not_fit_is_told_apart_from_wrong_use(engine_args: str, code: int, says: str) -> None:
    command = ["model", "probe", "--engine", "simulated", "--engine-args", engine_args]

    ended = subprocess.run(
        [sys.executable, "-m", "inferfleet.cli", *command], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (code, "")
    assert says in ended.stderr
