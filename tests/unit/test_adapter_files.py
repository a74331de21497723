"""The files of LoRA adapters: found by name, one copy of each version, and nothing outside their folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inferfleet.schemas import FailureCode
from inferfleet.schemas.errors import ConfigurationError
from inferfleet.worker.engines.adapter_files import AdapterFiles, AdapterSources
from inferfleet.worker.ports import GenerationError


def write(folder: Path, weights: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(weights)
    (folder / "README.md").write_text("about")
    return folder


def unreachable(place: str) -> str:
    raise RuntimeError(f"no route to {place}")


def files_of(folder: Path, **named: str) -> AdapterFiles:
    return AdapterFiles(AdapterSources(folder=folder, named=named), locate=unreachable)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "outside", "0")
    (tmp_path / "adapters" / "no-adapter").mkdir(parents=True)
    write(tmp_path / "adapters" / ".hidden", "1")
    write(tmp_path / "adapters" / "one", "1")
    return tmp_path / "adapters"


def test_a_version_is_a_copy_that_stays_when_the_adapter_is_replaced(folder: Path) -> None:
    files = files_of(folder)
    first = files.find("one")
    assert first is not None
    assert files.find("one") is first
    write(folder / "one", "2")
    second = files.find("one")
    assert second is not None
    assert second.version != first.version
    assert {each.name for each in first.folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert (first.folder / "adapter_model.safetensors").read_text() == "1"
    assert (second.folder / "adapter_model.safetensors").read_text() == "2"
    # The old contents are the old version again, and so are equal ones of another name.
    write(folder / "one", "1")
    assert files.find("one") == first
    write(folder / "two", "1")
    two = files.find("two")
    assert two is not None
    assert (two.fingerprint, two.folder) == (first.fingerprint, first.folder)
    files.close()
    assert not first.folder.exists()


def test_a_version_that_is_forgotten_leaves_no_copy_unless_another_has_its_contents(folder: Path) -> None:
    files = files_of(folder)
    first = files.find("one")
    write(folder / "two", "1")
    two = files.find("two")
    write(folder / "one", "2")
    second = files.find("one")
    assert first is not None
    assert two is not None
    assert second is not None
    files.forget(first, kept={second.version: second})
    assert two.folder.exists(), "the latest version of another adapter has it"
    write(folder / "two", "3")
    files.find("two")
    files.forget(two, kept={first.version: first})
    assert two.folder.exists()
    files.forget(two, kept={})
    assert not two.folder.exists()
    # A version that is forgotten while it is the latest one is copied again.
    files.forget(second, kept={})
    assert not second.folder.exists()
    assert files.find("one") == second
    assert second.folder.exists()
    files.close()


@pytest.mark.parametrize(
    "name", ["../outside", "..", ".", "", ".hidden", "no-adapter", "one/../one", "one/", "\0", "é" * 200]
)
def test_what_is_no_subfolder_with_an_adapter_is_not_found(folder: Path, name: str) -> None:
    files = files_of(folder)
    assert files.find(name) is None
    assert files.names() == ("one",)


def test_a_named_adapter_counts_more_than_a_folder_with_its_name(folder: Path) -> None:
    files = files_of(folder, one=str(folder.parent / "outside"), other=str(folder / "no-adapter"))
    found = files.find("one")
    assert found is not None
    assert (found.folder / "adapter_model.safetensors").read_text() == "0"
    with pytest.raises(
        GenerationError, match=r"'other', lora_modules names .* neither a folder with adapter_config\.json"
    ) as bad:
        files.find("other")
    assert bad.value.code is FailureCode.INVALID_REQUEST
    files.close()


def test_an_adapter_that_cannot_be_read_now_is_tried_again(folder: Path) -> None:
    files = files_of(folder, hub="org/adapter")
    with pytest.raises(GenerationError, match="the hub does not answer: no route to org/adapter") as away:
        files.find("hub")
    assert away.value.code is FailureCode.MODEL_UNAVAILABLE
    assert away.value.code.retryable


def test_files_that_change_while_they_are_read_are_no_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(folder)
    copy = shutil.copyfile

    def while_it_is_written(source: Path, target: Path) -> Path:
        copied = copy(source, target)
        write(folder / "one", "half")
        return copied

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", while_it_is_written)
        with pytest.raises(GenerationError, match="were changed while they were read") as changed:
            files.find("one")
    assert changed.value.code is FailureCode.MODEL_UNAVAILABLE
    found = files.find("one")
    assert found is not None
    assert (found.folder / "adapter_model.safetensors").read_text() == "half"
    files.close()


@pytest.mark.parametrize("module", ["x", "=x", "x=", {"name": "x"}, {"name": "x", "path": 1}, 3])
def test_a_module_without_name_or_path_is_refused(module: object) -> None:
    with pytest.raises(ConfigurationError, match="lora_modules should be a list of 'name=path', or of"):
        AdapterSources.read(adapters_dir="", lora_modules=[module])


@pytest.mark.parametrize("modules", ["x=y", {"x": "y"}, 3])
def test_modules_that_are_no_list_are_refused(modules: object) -> None:
    with pytest.raises(ConfigurationError, match="lora_modules should be a list of 'name=path', or of"):
        AdapterSources.read(adapters_dir="", lora_modules=modules)


def test_the_settings_are_read(tmp_path: Path) -> None:
    sources = AdapterSources.read(
        adapters_dir=str(tmp_path), lora_modules=["c=/d", {"name": "e", "path": "f"}]
    )
    assert sources == AdapterSources(folder=tmp_path, named={"c": "/d", "e": "f"})
    assert not AdapterSources()
