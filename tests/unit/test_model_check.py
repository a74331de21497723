"""What is found wrong with the files of a model, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.model_folders import FILES, SHARDS, hub_snapshot, plain_folder, safetensors

from inferfleet.cli.model_check import Checked, check
from inferfleet.cli.model_snapshots import Snapshot, find_snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checked(root: Path, model: str = "acme/chat") -> Checked:
    return check(find_snapshot(model, None, root))


def problems(found: Checked) -> list[str]:
    return [f"{Path(file).name} {problem}" for file, problem in found.problems]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_every_file_of_a_snapshot_has_a_checksum(tmp_path: Path) -> None:
    hub_snapshot(tmp_path, "acme/chat", COMMIT, "main")
    assert checked(tmp_path) == Checked(by_checksum=len(FILES), by_content=0, unchecked=0, problems=[])


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_of_a_blob_is_found(tmp_path: Path, name: str) -> None:
    file = hub_snapshot(tmp_path, "acme/chat", COMMIT, "main") / name
    file.resolve().write_bytes(flipped(FILES[name]))
    found = checked(tmp_path)
    assert [Path(problem.file) for problem in found.problems] == [file]
    assert found.problems[0].problem.startswith("is damaged: its checksum is ")
    assert found.by_checksum == len(FILES) - 1


def test_a_link_without_a_blob_is_found(tmp_path: Path) -> None:
    file = hub_snapshot(tmp_path, "acme/chat", COMMIT, "main") / SHARDS[0]
    file.resolve().unlink()
    assert problems(checked(tmp_path)) == [f"{SHARDS[0]} is a link to {file.readlink()}, which is missing"]


def test_a_blob_may_be_a_link_to_one_that_several_models_share(tmp_path: Path) -> None:
    file = hub_snapshot(tmp_path, "acme/chat", COMMIT, "main") / SHARDS[0]
    blob = file.resolve()
    shared = blob.rename(tmp_path / "hub" / "shared")
    blob.symlink_to(shared)
    assert checked(tmp_path).problems == []
    shared.write_bytes(flipped(FILES[SHARDS[0]]))
    assert problems(checked(tmp_path))[0].startswith(f"{SHARDS[0]} is damaged")


def test_an_incomplete_download_is_found(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path, "acme/chat", COMMIT, "main")
    (snapshot.parents[1] / "blobs" / "abc.incomplete").write_bytes(b"1234")
    assert problems(checked(tmp_path)) == ["abc.incomplete is an incomplete download, of 4 bytes so far"]


@pytest.mark.parametrize("index", [True, False], ids=["by the index", "by their numbers"])
def test_a_missing_shard_is_found(tmp_path: Path, index: bool) -> None:
    left_out = {SHARDS[1]} if index else {SHARDS[1], "model.safetensors.index.json"}
    files = {name: content for name, content in FILES.items() if name not in left_out}
    hub_snapshot(tmp_path, "acme/chat", COMMIT, "main", files=files)
    assert problems(checked(tmp_path)) == [f"{SHARDS[1]} is missing"]


def test_a_shard_of_another_name_is_missed_by_the_index(tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "first.safetensors", "b": "second.safetensors"}}'
    files = {"model.safetensors.index.json": index, "first.safetensors": safetensors()}
    assert problems(check(folder(tmp_path, files))) == ["second.safetensors is missing"]


def test_an_index_with_something_else_than_a_name_is_found(tmp_path: Path) -> None:
    files = {**FILES, "model.safetensors.index.json": b'{"weight_map": {"a": ["x"]}}'}
    assert problems(check(folder(tmp_path, files))) == ["['x'] is missing"]


def test_a_model_without_weights_is_found(tmp_path: Path) -> None:
    assert problems(check(folder(tmp_path, {"config.json": b"{}"}))) == [f"{tmp_path.name} has no weights"]


def folder(root: Path, files: dict[str, bytes]) -> Snapshot:
    return Snapshot(model=str(root), path=plain_folder(root, files))


def test_a_plain_folder_is_checked_as_far_as_its_files_describe_themselves(tmp_path: Path) -> None:
    # A changed bit of a weight is not found here.
    files = {**FILES, SHARDS[0]: flipped(FILES[SHARDS[0]])}
    found = check(folder(tmp_path, files))
    assert found == Checked(by_checksum=0, by_content=4, unchecked=1, problems=[])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (SHARDS[0], FILES[SHARDS[0]][:-1], "bytes, but"),
        (SHARDS[0], FILES[SHARDS[0]] + b"\0", "bytes, but"),
        (SHARDS[0], FILES[SHARDS[0]][:20], "is cut off"),
        (SHARDS[0], b"", "is cut off"),
        (SHARDS[0], bytes([4]) + bytes(7) + b"{{{{", "has no readable safetensors header"),
        (SHARDS[0], bytes([2]) + bytes(7) + b"[]", "has no readable safetensors header"),
        (
            SHARDS[0],
            bytes([32]) + bytes(7) + b'{"a": {"data_offsets": [0, ""]}}',
            "has no readable safetensors",
        ),
        ("config.json", b'{"architectures"', "is not JSON"),
        ("model.safetensors.index.json", b"\xff\xfe", "is not JSON"),
    ],
    ids=[
        "short",
        "long",
        "in the header",
        "empty",
        "no JSON header",
        "no object",
        "no offset",
        "JSON cut off",
        "no text",
    ],
)
def test_a_plain_file_that_contradicts_itself_is_found(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    found = problems(check(folder(tmp_path, {**FILES, name: content})))
    assert len(found) == 1
    assert found[0].startswith(name)
    assert problem in found[0]


def test_a_downloaded_folder_has_checksums(tmp_path: Path) -> None:
    path = plain_folder(tmp_path, downloaded=True)
    assert check(Snapshot(model=str(path), path=path)).by_checksum == len(FILES)
    (path / SHARDS[0]).write_bytes(flipped(FILES[SHARDS[0]]))
    (path / ".cache/huggingface/download/x.incomplete").touch()
    first, second = problems(check(Snapshot(model=str(path), path=path)))
    assert first.startswith(f"{SHARDS[0]} is damaged")
    assert second == "x.incomplete is an incomplete download, of 0 bytes so far"
