"""docs/simulated-engine.md agrees with the code, and its example runs."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from inferfleet.worker.engines.simulated.hooks import Hooks
from inferfleet.worker.engines.simulated.parameters import SimulatedParameters

DOCUMENT = (Path(__file__).parents[2] / "docs" / "simulated-engine.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_parameter_is_documented_with_its_default() -> None:
    documented = re.findall(r"^\| `(\w+)` \| ([\d.]+|none|false) \|", section("Parameters"), re.MULTILINE)

    defaults = SimulatedParameters().model_dump()
    words = {"none": None, "false": False}
    assert {name: words[value] if value in words else float(value) for name, value in documented} == defaults


def test_every_fault_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", section("Faults"), re.MULTILINE)

    assert documented == list(Hooks.model_fields)


def test_the_example_prints_what_the_page_says() -> None:
    example, printed = re.findall(r"```python\n(.*?)```\n\n    (.*?)\n", DOCUMENT, re.DOTALL)[0]
    output = io.StringIO()

    with contextlib.redirect_stdout(output):
        exec(compile(example, "docs/simulated-engine.md", "exec"), {})

    assert output.getvalue().strip() == printed
