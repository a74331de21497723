"""vLLM's ``AsyncLLM`` called directly, with the very arguments that our worker gives it.

Follows orders on stdin: the number of requests at once, and the number of requests in all (``plan.steps``).
"""

import asyncio
import json
import os
import statistics
import time
from contextlib import aclosing

import uvloop
from plan import prompt, report, steps
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from inferfleet.worker.engines.vllm.arguments import read_arguments


async def main() -> None:
    given = json.loads(os.environ["BENCH_ENGINE"])
    arguments = read_arguments(
        model=given["model"],
        served_names=["direct"],
        max_running=given["max_running"],
        engine_args=given["engine_args"],
    )
    engine = AsyncLLM.from_engine_args(arguments.engine)
    sampling = SamplingParams(
        temperature=0,
        max_tokens=given["output_tokens"],
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )

    async def request(number: int) -> float:
        (rendered,) = await engine.renderer.render_cmpl_async(
            [{"prompt_token_ids": prompt(number, given["input_tokens"])}]
        )
        started, first = time.perf_counter(), 0.0
        async with aclosing(engine.generate(rendered, sampling, str(number))) as outputs:
            async for _ in outputs:
                first = first or time.perf_counter() - started
        return first

    await request(0)
    report(ready=True)
    number = 1
    orders = steps()
    while (order := await asyncio.to_thread(next, orders, None)) is not None:
        together, count = int(order[0]), order[1]
        slots = asyncio.Semaphore(together)

        async def limited(number: int, slots: asyncio.Semaphore = slots) -> float:
            async with slots:
                return await request(number)

        started = time.perf_counter()
        firsts = await asyncio.gather(*(limited(number + offset) for offset in range(count)))
        seconds = time.perf_counter() - started
        number += count
        report(seconds=seconds, first_token_s=statistics.median(firsts))
    engine.shutdown()


if __name__ == "__main__":
    uvloop.run(main())
