"""An adapter that changes nothing, with which vLLM on a CPU answers for the model itself.

In a batch that mixes requests with and without an adapter, vLLM 0.32 on a CPU answers those without one with
the weights of some adapter: its PyTorch operations index the adapters with -1, which stands for none.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from vllm.platforms import current_platform


def is_needed() -> bool:
    """Return whether this process has the fault."""
    return bool(current_platform.is_cpu())


def write(folder: Path, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Write the adapter for a model whose matrices have these shapes, and return whether that is possible."""
    module = next((name for name in shapes if name.endswith("q_proj")), None)
    if module is None:
        return False
    rows, columns = shapes[module]
    name = f"base_model.model.{module}"
    folder.mkdir(parents=True)
    save_file(
        {
            f"{name}.lora_A.weight": torch.zeros(1, columns),
            f"{name}.lora_B.weight": torch.zeros(rows, 1),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return True
