"""LoRA adapters for the tiny model, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_adapter(folder: Path, *, seed: int, rank: int = 4, hidden: int = 128, **config: Any) -> Path:
    """Write an adapter with random weights, so large that its answers differ from those of the base model."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for layer in range(2):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(written | config))
    return folder
