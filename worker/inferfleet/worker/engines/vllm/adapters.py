"""The LoRA adapters that vLLM has, or loads when a request names one.

vLLM keeps ``max_loras`` adapters on the device and ``max_cpu_loras`` in memory, by their last use, and reads
one again that it has dropped. Every version of an adapter has its own name, number and folder, so that vLLM
never takes weights or cached prefixes of one version for those of another.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from weakref import WeakValueDictionary

from huggingface_hub import snapshot_download
from safetensors import safe_open
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

from inferfleet.schemas import FailureCode
from inferfleet.worker.engines.adapter_files import Adapter, AdapterFiles, AdapterSources
from inferfleet.worker.engines.vllm import zero_adapter
from inferfleet.worker.engines.vllm.errors import refusal
from inferfleet.worker.ports import Generation, GenerationError

_NAMES_SHOWN: Final = 20

KEPT: Final = 64
"""How many versions of adapters are kept, unless more of them have answers that run."""

Shapes = dict[str, list[int]]


class Adapters:
    """The adapters of one vLLM engine."""

    def __init__(self, engine: Any, served_models: Any, sources: AdapterSources) -> None:
        self._engine = engine
        self._models = served_models
        self._files = AdapterFiles(sources, locate=get_adapter_absolute_path) if sources else None
        self._found: dict[str, Adapter] = {}
        """Every version that is kept, the one that was asked for most recently last."""
        self._held = Counter[str]()
        """How many running answers each version has."""
        self._finding: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._loading = asyncio.Lock()
        self._base: Shapes | None = None
        self._own = TemporaryDirectory(prefix="inferfleet-zero-adapter-")

    async def names(self) -> tuple[str, ...]:
        """List the adapters that a request may name."""
        return () if self._files is None else await asyncio.to_thread(self._files.names)

    async def find(self, name: object) -> Adapter | None:
        """Return the present version of the adapter with this name; ``None`` for the model itself.

        Raises:
            GenerationError: There is neither a model nor an adapter with this name.

        """
        if name in (None, "") or (isinstance(name, str) and self._models.is_base_model(name)):
            return None
        found: Adapter | None = None
        if self._files is not None and isinstance(name, str):
            async with self._finding.setdefault(name, asyncio.Lock()):
                found = await asyncio.to_thread(self._files.find, name)
        if found is None:
            raise await self._unknown(name)
        self._found.pop(found.version, None)
        self._found[found.version] = found
        if len(self._found) > KEPT:
            await self._forget()
        return found

    @asynccontextmanager
    async def held(self, generation: Generation) -> AsyncGenerator[Adapter | None]:
        """Hold the adapter that has to answer a request, which vLLM has then, until the block ends.

        Raises:
            GenerationError: There is no such adapter, or it does not fit the model.

        """
        name = generation.body.get("model")
        found = self._found.get(f"{name}@{generation.adapter}") or await self.find(name)
        if found is not None and generation.adapter not in ("", found.fingerprint):
            raise GenerationError(
                FailureCode.MODEL_UNAVAILABLE,
                f"model: the adapter {name!r} was replaced before its answer began",
            )
        version = "" if found is None else found.version
        self._held[version] += 1
        try:
            yield await self._loaded(found)
        finally:
            self._held[version] -= 1

    async def _loaded(self, found: Adapter | None) -> Adapter | None:
        if found is None and self._files is not None and zero_adapter.is_needed():
            async with self._loading:
                found = await asyncio.to_thread(self._zero)
        if found is not None and found.version not in self._models.lora_requests:
            async with self._loading:
                if found.version not in self._models.lora_requests:
                    await self._load(found)
        return found

    async def _forget(self) -> None:
        """Forget the versions that were asked for least recently, but none with an answer that runs."""
        async with self._loading:
            for version, adapter in list(self._found.items())[:-KEPT]:
                if self._held[version] or self._found.pop(version, None) is None:
                    continue
                del self._held[version]
                request = self._models.lora_requests.pop(version, None)
                if request is not None:
                    await self._engine.remove_lora(request.lora_int_id)
                assert self._files is not None  # noqa: S101 - it has found them
                await asyncio.to_thread(self._files.forget, adapter, kept=self._found)

    def close(self) -> None:
        """Remove the copies of their files."""
        if self._files is not None:
            self._files.close()
        self._own.cleanup()

    def _zero(self) -> Adapter:
        folder = Path(self._own.name) / "zero"
        if not folder.exists() and not zero_adapter.write(folder, self._base_shapes()):
            raise refusal(
                "model: on a CPU, a worker with adapters cannot answer for this model itself, because its "
                "weights have no matrix q_proj in safetensors; use a worker without adapters"
            )
        return Adapter(name=self._models.base_model_paths[0].name, fingerprint="zero", folder=folder)

    async def _load(self, adapter: Adapter) -> None:
        """Load an adapter before any request uses it: a failure in the middle of a batch ends the engine."""
        await asyncio.to_thread(self._require_fit, adapter)
        request = LoRARequest(
            lora_name=adapter.version,
            lora_int_id=self._models.lora_id_counter.inc(1),
            lora_path=str(adapter.folder),
        )
        try:
            await self._engine.add_lora(request)
        except VllmEngineDeadError:
            raise
        except Exception as error:
            # Otherwise vLLM may keep a part of it in one of its places for adapters.
            await self._engine.remove_lora(request.lora_int_id)
            reason = str(error).replace(str(adapter.folder), "the adapter")
            raise _unfit(adapter, f"vLLM cannot load it: {reason}") from None
        self._models.lora_requests[adapter.version] = request

    def _require_fit(self, adapter: Adapter) -> None:
        """Refuse an adapter whose matrices have other sizes than the model's. vLLM takes smaller ones."""
        try:
            shapes = _shapes(adapter.folder)
        except Exception as error:
            raise _unfit(adapter, f"its weights cannot be read: {error}") from None
        base = self._base_shapes()
        for name, shape in shapes.items():
            module, _, half = name.removeprefix("base_model.model.").rpartition(".lora_")
            whole = base.get(module)
            if whole is not None and {"A": shape[-1] != whole[1], "B": shape[0] != whole[0]}.get(half):
                raise _unfit(
                    adapter,
                    f"it was made for another model: lora_{half} of {module} is {shape[0]} x {shape[1]}, and "
                    f"the model's matrix is {whole[0]} x {whole[1]}",
                )

    def _base_shapes(self) -> Shapes:
        if self._base is None:
            folder = _folder_of(self._engine.model_config)
            self._base = {} if folder is None else _shapes(folder)
        return self._base

    async def _unknown(self, name: object) -> GenerationError:
        served = ", ".join(repr(path.name) for path in self._models.base_model_paths)
        names = await self.names()
        if names:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            served += f" and the adapters {', '.join(map(repr, names[:_NAMES_SHOWN]))}{more}"
        return refusal(f"model: this worker serves {served}, not {name!r}")


def _unfit(adapter: Adapter, why: str) -> GenerationError:
    return refusal(f"model: the adapter {adapter.name!r} cannot be used: {why}")


def _folder_of(config: Any) -> Path | None:
    folder = Path(config.model)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(config.model, revision=config.revision, local_files_only=True))
    except (OSError, ValueError):
        return None  # not from the hub


def _shapes(folder: Path) -> Shapes:
    """Return the shapes of the matrices in a folder, by name without ``.weight``, except of packed ones."""
    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                matrix = tensors.get_slice(name)
                if len(matrix.get_shape()) == 2 and matrix.get_dtype().startswith(("F", "BF")):
                    shapes[name.removesuffix(".weight")] = matrix.get_shape()
    return shapes
