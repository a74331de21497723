"""pydantic-ai's model of OpenAI, unmodified: ``with_pydantic_ai.py BASE_URL MODEL``."""

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

HELLO = "hello out there"


class Place(BaseModel):
    city: str
    height_m: int


class Nothing(BaseModel):
    pass


async def main(url: str, name: str) -> None:
    model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key="none"))

    said = await Agent(model).run(HELLO)
    assert said.output == HELLO
    async with Agent(model).run_stream(HELLO) as streamed:
        assert await streamed.get_output() == HELLO

    # What pydantic-ai calls output by a tool: the model has to call it.
    assert (await Agent(model, output_type=Nothing).run(HELLO)).output == Nothing()
    found = await Agent(model, output_type=NativeOutput(Place)).run("the tower")
    assert found.output == Place(city="Paris", height_m=330)

    status = None
    try:
        await Agent(model).run(HELLO, model_settings={"temperature": 9})
    except ModelHTTPError as error:
        status = error.status_code
    assert status == 400


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
