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
    # Made here, because the kubelet would make it for root alone.
    (Path(os.environ["HF_HOME"]) / "compiled").mkdir(exist_ok=True)
    model = os.environ["INFERFLEET_MODEL"]
    revision = json.loads(os.environ.get("INFERFLEET_ENGINE_ARGS") or "{}").get("revision") or "main"
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


if __name__ == "__main__":
    main()
