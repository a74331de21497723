"""Put the model into the cache volume before the worker starts, so that the worker needs no network for it.

Several pods may do this at once: huggingface_hub locks each file. A model that is complete is left alone,
without a request, so a scale-out does not depend on anybody's server.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Download the model that the environment names, unless all of it is there.

    Also make the folder for what vLLM compiles.
    """
    model = os.environ.get("INFERFLEET_MODEL") or sys.exit("INFERFLEET_MODEL names no model")
    revision = engine_arguments().get("revision") or "main"
    # Made here, because the kubelet would make it for root alone.
    compiled = Path(os.environ["HF_HOME"]) / "compiled"
    try:
        compiled.mkdir(exist_ok=True)
    except OSError as error:
        writer = f"the user {os.getuid()} or the group {os.getgid()}"
        sys.exit(f"cannot make {compiled} ({error.strerror}): the volume has to let {writer} write")
    if model.startswith("/"):
        if not Path(model).is_dir():
            sys.exit(f"the model {model} is a folder that is not there")
        return
    complete = Path(os.environ["HF_HOME"]) / "complete" / f"{model}@{revision}".replace("/", "--")
    if complete.exists():
        sys.stdout.write(f"{model} is in the cache\n")
        return
    from huggingface_hub import snapshot_download

    # Some repositories hold the weights a second time, as their authors first had them.
    snapshot_download(model, revision=revision, ignore_patterns=["original/*"])
    # An interrupted download leaves a folder that looks like a model; this file says that all of it came.
    complete.parent.mkdir(exist_ok=True)
    complete.touch()
    sys.stdout.write(f"{model} is complete\n")


def engine_arguments() -> dict[str, object]:
    """Return the engine's arguments as the worker will read them."""
    try:
        arguments = json.loads(os.environ.get("INFERFLEET_ENGINE_ARGS") or "{}")
    except ValueError as error:
        sys.exit(f"INFERFLEET_ENGINE_ARGS is not JSON ({error})")
    if not isinstance(arguments, dict):
        sys.exit(f"INFERFLEET_ENGINE_ARGS must be a JSON object, not {json.dumps(arguments)}")
    return arguments


if __name__ == "__main__":
    main()
