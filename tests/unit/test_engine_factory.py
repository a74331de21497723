"""Which engine ``--engine`` names: an entry point of an installed package, ours like anybody's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from inferfleet.schemas.errors import ConfigurationError
from inferfleet.schemas.settings import WorkerSettings
from inferfleet.worker.engine_factory import find_engine, make_engine
from inferfleet.worker.engines.simulated import SimulatedEngine

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with one engine, as a wheel would: a module and what is known of it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, *, engine: str, value: str, source: str = "") -> None:
        known = tmp_path / f"{package}-1.0.dist-info"
        known.mkdir()
        (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (known / "entry_points.txt").write_text(f"[inferfleet.engines]\n{engine} = {value}\n")
        (tmp_path / f"{package}.py").write_text(source)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return install


def test_our_own_engines_are_found_as_others_are() -> None:
    assert isinstance(make_engine(WorkerSettings(engine="simulated")), SimulatedEngine)
    assert find_engine("vllm").dist is not None


def test_an_installed_engine_is_made_from_the_workers_settings(install: Install) -> None:
    source = "class Engine:\n    def __init__(self, settings): self.settings = settings\n"
    install("parrot", engine="parrot", value="parrot:Engine", source=source)
    settings = WorkerSettings(engine="parrot", model="grey", engine_args={"words": 3})

    engine = make_engine(settings)

    assert engine.settings is settings  # type: ignore[attr-defined]


def test_an_engine_that_nobody_chose_is_not_imported(install: Install) -> None:
    install("broken", engine="broken", value="broken:Engine", source="raise RuntimeError")

    make_engine(WorkerSettings(engine="simulated"))

    assert find_engine("broken").name == "broken"


def test_an_unknown_engine_is_told_what_there_is_and_what_was_meant(install: Install) -> None:
    install("parrot", engine="parrot", value="parrot:Engine")

    with pytest.raises(ConfigurationError) as error:
        make_engine(WorkerSettings(engine="simulatd"))

    assert str(error.value).startswith("no engine is named 'simulatd' (did you mean 'simulated'?)")
    assert "parrot, " in str(error.value)
    assert ", vllm" in str(error.value)


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("parrot:Engine", "import no_such_library", "No module named 'no_such_library'"),
        ("parrot:Engin", "class Engine: pass", "no attribute 'Engin'"),
        ("parrot:Engine", "\n1 / 0", "parrot.py, line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_an_engine_that_cannot_be_imported_names_its_package_and_the_reason(
    install: Install, value: str, source: str, reason: str
) -> None:
    install("parrot", engine="polly", value=value, source=source)

    with pytest.raises(ConfigurationError) as error:
        make_engine(WorkerSettings(engine="polly"))

    assert f"the engine 'polly' ({value}, of the package parrot) cannot be imported" in str(error.value)
    assert reason in str(error.value)


def test_a_name_that_two_packages_have_is_refused(install: Install) -> None:
    install("parrot", engine="bird", value="parrot:Engine")
    install("magpie", engine="bird", value="magpie:Engine")

    with pytest.raises(ConfigurationError, match="an engine named 'bird': magpie and parrot"):
        find_engine("bird")


def test_a_worker_with_an_unknown_engine_ends_at_once_with_2() -> None:
    command = [sys.executable, "-m", "inferfleet.cli", "worker", "--engine", "vlm"]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert ended.returncode == 2
    assert "no engine is named 'vlm' (did you mean 'vllm'?); installed are: " in ended.stderr
    assert "Traceback" not in ended.stderr
