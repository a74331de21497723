"""docs/layout.md lists what is in the tree, and nothing else."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOTS: list[str] = PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]


def first_cells(title: str) -> list[str]:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)


def folder_of(package: str) -> str:
    layer = package.split(".")[1]
    return f"{layer}/{package.replace('.', '/')}"


def test_every_package_is_listed_with_its_folder() -> None:
    folders = {
        str(module.parent.relative_to(ROOT)) for root in ROOTS for module in (ROOT / root).rglob("*.py")
    }

    assert {folder_of(package) for package in first_cells("Packages")} == folders
    assert re.findall(r"^\| `inferfleet\..*?` \| `(.*?)` \|", PAGE, re.MULTILINE) == [
        folder_of(package) for package in first_cells("Packages")
    ]


@pytest.mark.parametrize(("layer", "rooms"), [("wire", ("", "rabbitmq", "redis")), ("worker", ("",))])
def test_every_module_is_listed(layer: str, rooms: tuple[str, ...]) -> None:
    package = ROOT / layer / "inferfleet" / layer
    modules = {
        str(module.relative_to(package))
        for room in rooms
        for module in (package / room).glob("*.py")
        if module.name != "__init__.py"
    }

    listed = first_cells(f"Modules of the {layer}")
    assert sorted(listed) == sorted(modules)


def test_every_root_is_a_layer_and_is_told_to_every_tool() -> None:
    tool = PROJECT["tool"]
    layers = tool["importlinter"]["contracts"][0]["layers"]

    assert sorted(ROOTS) == sorted(re.findall(r"inferfleet\.(\w+)", " ".join(layers)))
    assert tool["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"{root}/inferfleet" for root in ROOTS]
    assert tool["mypy"]["mypy_path"] == [*ROOTS, "benchmarks"]
    assert tool["pyright"]["include"] == tool["pyright"]["extraPaths"] == ROOTS
    assert tool["ruff"]["src"] == ROOTS
    assert tool["importlinter"]["root_packages"] == [f"inferfleet.{root}" for root in ROOTS]
    for page in ("Dockerfile", ".dockerignore", "deploy/docker/install-dependencies", "Makefile"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [root for root in ROOTS if not re.search(rf"\b{root}\b", text)] == [], page


@pytest.mark.parametrize("layer", ["producer", "worker", "exporter", "cli"])
def test_only_the_wire_says_a_command_to_redis(layer: str) -> None:
    said = [
        f"{module.relative_to(ROOT)}:{call.lineno}"
        for module in (ROOT / layer).rglob("*.py")
        for call in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"enqueue", "execute", "execute_command"}
        and isinstance(call.args[0], (ast.Constant, ast.Starred))
    ]

    assert said == []
