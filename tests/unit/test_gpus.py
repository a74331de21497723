"""The GPUs of a worker, as NVML describes them. NVML itself is a fake here: these machines have no GPU."""

from __future__ import annotations

import pytest
from tests.fake_nvml import FakeNvml

from inferfleet.worker.gpus import GpuReading, Gpus


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_is_read_in_base_units() -> None:
    assert Gpus(FakeNvml({"GPU-1": []}, limits=0x04 | 0x01)).read() == [
        GpuReading(
            uuid="GPU-1",
            memory_used_bytes=30,
            memory_total_bytes=80,
            utilization=0.75,
            power_watts=312.5,
            temperature_celsius=64,
            throttled={"power": True, "thermal": False, "hardware": False},
        )
    ]


def test_each_mig_instance_counts_as_a_gpu_with_the_power_of_the_whole() -> None:
    first, second = Gpus(FakeNvml({"GPU-1": ["MIG-a", "MIG-b"]})).read()

    assert (first.uuid, second.uuid) == ("MIG-a", "MIG-b")
    assert first.memory_total_bytes == 40
    assert (first.power_watts, first.temperature_celsius) == (312.5, 64)
    assert first.utilization is None


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["GPU-aa"]),
        ("1", ["MIG-x", "MIG-y"]),
        ("GPU-a", ["GPU-aa"]),
        ("MIG-y", ["MIG-y"]),
        ("", []),
    ],
)
def test_only_the_gpus_that_cuda_shows_the_process_are_read(
    visible: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    gpus = Gpus(FakeNvml({"GPU-aa": [], "GPU-bb": ["MIG-x", "MIG-y"]})).read()

    assert [gpu.uuid for gpu in gpus] == expected


def test_a_gpu_that_is_lost_is_absent_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml({"GPU-1": []})
    gpus = Gpus(nvml)
    nvml.lost = True
    assert (gpus.read(), gpus.read()) == ([], [])
    assert caplog.text.count("GPU is lost") == 1
    nvml.lost = False
    assert len(gpus.read()) == 1


def test_the_names_that_are_used_exist_in_the_real_library() -> None:
    pynvml = pytest.importorskip("pynvml")
    used = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]

    assert [name for name in used if not hasattr(pynvml, name)] == []


def test_without_a_driver_there_are_no_gpus() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert Gpus().read() == []
    else:
        pytest.skip("this machine has an NVIDIA driver")
