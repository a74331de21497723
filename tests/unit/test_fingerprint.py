"""Fingerprints of model files: equal for copies, different for other weights, and cheap."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from inferfleet.worker.engines.fingerprint import digest, fingerprint

TENSORS = 40
TENSOR_BYTES = 8192


def write_weights(path: Path, fill: int = 1) -> None:
    header = {
        f"layer.{number}": {
            "dtype": "F32",
            "shape": [TENSOR_BYTES // 4],
            "data_offsets": [number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES],
        }
        for number in range(TENSORS)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes([fill]) * TENSORS * TENSOR_BYTES)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 64}')
    write_weights(folder / "model.safetensors")
    return folder


def test_a_copy_has_the_same_fingerprint(model: Path, tmp_path: Path) -> None:
    before = fingerprint(model)
    copy = tmp_path / "elsewhere"
    shutil.copytree(model, copy)
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("what a download brings along")
    (copy / ".cache").mkdir()
    assert fingerprint(copy) == before
    assert before


@pytest.mark.parametrize("layer", [0, 17, TENSORS - 1])
def test_one_tensor_that_was_trained_on_is_seen(model: Path, layer: int) -> None:
    before = fingerprint(model)
    with (model / "model.safetensors").open("r+b") as weights:
        weights.seek(-(TENSORS - layer) * TENSOR_BYTES, os.SEEK_END)
        weights.write(bytes([2]) * TENSOR_BYTES)
    assert fingerprint(model) != before


def test_what_a_tensor_is_called_is_seen(model: Path) -> None:
    before = fingerprint(model)
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content.replace(b"layer.7", b"layer.x"))
    assert fingerprint(model) != before


def test_the_configuration_is_seen(model: Path) -> None:
    before = fingerprint(model)
    (model / "config.json").write_text('{"hidden_size": 65}')
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "broken.safetensors"])
def test_weights_of_another_format_are_sampled_all_over(model: Path, name: str) -> None:
    (model / name).write_bytes(b"\xff" * 200_000)
    before = fingerprint(model)
    (model / name).write_bytes(b"\xff" * 100_000 + b"\x00" * 100_000)
    assert fingerprint(model) != before


def test_a_file_larger_than_the_memory_is_not_read_whole(model: Path) -> None:
    os.truncate(model / "model.safetensors", 1 << 40)
    assert fingerprint(model)


def test_a_snapshot_of_the_hub_is_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert fingerprint(tmp_path / "models--a--b" / "snapshots" / commit) == commit


def test_what_is_not_here_has_none(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "a" / "model") == ""


def test_settings_that_are_code_count_by_their_name() -> None:
    assert digest({"logits_processors": [Path]}) == digest({"logits_processors": [Path]})
    assert digest({"logits_processors": [Path]}) != digest({"logits_processors": [str]})
