"""How well an index finds what brute force finds, with real embeddings of this repository's own files.

    python benchmarks/retrieval.py FOLDER     a folder with an embedding model, such as all-MiniLM-L6-v2

Needs vLLM and Docker. A worker embeds the chunks on whatever vLLM runs on. The questions are sentences of the
files; brute force compares each with all vectors, as 32-bit floats. Prints the share of its ten nearest
chunks that a search finds, and exits with 1 if that is less than 0.95.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from inferfleet.local.services import ServicesChoice, running_services
from inferfleet.local.worker_processes import WorkerProcesses, wait_until_ready
from inferfleet.producer import Fleet, Index
from inferfleet.producer.window import Window
from inferfleet.schemas.retrieval import Embedding
from inferfleet.schemas.settings import ProducerSettings, WorkerSettings
from inferfleet.wire.redis.indexes import BegunDocument, IndexStore

ROOT = Path(__file__).parents[1]
POOL = "embed"
CHUNK_CHARS = 400
K = 10
QUESTIONS = 300
ENOUGH = 0.95
LOADING_S = 300.0


class RecordingStore(IndexStore):
    """Keeps the vectors that it stores."""

    vectors: dict[str, bytes]

    async def store(
        self, document: BegunDocument, chunk: str, text: str, vector: bytes, *, embedding: Embedding
    ) -> None:
        self.vectors[chunk] = vector
        await super().store(document, chunk, text, vector, embedding=embedding)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--chunks", type=int, default=4000, help="how many chunks, about")
    arguments = parser.parse_args()
    with running_services(ServicesChoice.DOCKER) as services:
        urls: dict[str, Any] = {"amqp_url": services.amqp_url, "redis_url": services.redis_url}
        worker = WorkerSettings(
            **urls,
            pool=POOL,
            engine="vllm",
            model=str(arguments.model),
            max_running=64,
            engine_args={"runner": "pooling", "convert": "embed", "dtype": "float32", "enforce_eager": True},
        )
        async with WorkerProcesses() as workers, Fleet.connect(ProducerSettings(**urls)) as fleet:
            await wait_until_ready([workers.start(worker)], timeout_s=LOADING_S)
            recall = await measure(fleet, documents(arguments.chunks))
    sys.exit(0 if recall >= ENOUGH else 1)


def documents(chunks: int) -> list[dict[str, Any]]:
    """This repository's pages and modules, in an order that is the same each time."""
    files = sorted([*ROOT.rglob("docs/**/*.md"), *ROOT.rglob("*/inferfleet/**/*.py")])
    random.Random(1).shuffle(files)
    chosen: list[dict[str, Any]] = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        if text.strip():
            chosen.append({"id": str(file.relative_to(ROOT)), "text": text})
        if sum(len(each["text"]) for each in chosen) > chunks * CHUNK_CHARS * 0.75:
            break
    return chosen


async def measure(fleet: Fleet, corpus: list[dict[str, Any]]) -> float:
    """Fill an index, search it, and return the recall of all searches."""
    index = fleet.index("repository")
    store = RecordingStore(fleet.pipeline, name=index.name, tenant=index.tenant)
    store.vectors = {}
    index._store = store
    await index.create(pool=POOL, chunk_chars=CHUNK_CHARS, overlap_chars=40)
    empty = await used_memory(fleet)
    began = time.monotonic()
    added = await index.add(corpus)
    took_s = time.monotonic() - began
    grown = await used_memory(fleet) - empty
    print(f"{added.documents:,} documents, {added.chunks:,} chunks, embedded in {took_s:.0f} s")
    print(f"Redis has grown by {grown / added.chunks / 1000:.1f} KB a chunk, with texts and jobs")
    ids, matrix = list(store.vectors), unit(np.array([floats(each) for each in store.vectors.values()]))
    questions = sentences(corpus)
    return await search_all(index, questions, ids, matrix)


async def search_all(index: Index, questions: list[str], ids: list[str], matrix: Any) -> float:
    """Search for each question, by the index and by brute force."""
    record = await index.get()
    embedder = index._embedder(record)
    window = Window(16)
    recalls: list[float] = []
    times: list[float] = []
    for start in range(0, len(questions), 32):
        some = questions[start : start + 32]
        _, vectors = await embedder.embed(some, key=f"questions:{start}", wanted=None, window=window)
        for question, vector in zip(some, vectors, strict=True):
            nearest = np.argsort(-(matrix @ unit(floats(vector)[None])[0]))[:K]
            began = time.monotonic()
            hits = await index._store.search(vector, generation=record.generation, k=K, where={})
            times.append(time.monotonic() - began)
            assert len(hits) == K, question
            recalls.append(len({ids[each] for each in nearest} & {hit.id for hit in hits}) / K)
    window.close()
    print(
        f"recall@{K} {statistics.mean(recalls):.3f}, lowest {min(recalls):.1f}; "
        f"a search takes Redis {1000 * statistics.median(times):.1f} ms"
    )
    return statistics.mean(recalls)


def sentences(corpus: list[dict[str, Any]]) -> list[str]:
    """Sentences of the documents, each once."""
    found = {
        line.strip() for each in corpus for line in each["text"].split("\n") if 40 < len(line.strip()) < 200
    }
    return random.Random(2).sample(sorted(found), QUESTIONS)


def floats(vector: bytes) -> Any:
    return np.frombuffer(vector, dtype="<f4")


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


async def used_memory(fleet: Fleet) -> int:
    return int((await fleet.pipeline.execute("INFO"))["used_memory"])


if __name__ == "__main__":
    asyncio.run(main())
