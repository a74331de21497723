"""LangChain's models of OpenAI, unmodified: ``with_langchain.py BASE_URL MODEL``."""

import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import BadRequestError
from pydantic import BaseModel

HELLO = "hello out there"


class Place(BaseModel):
    city: str
    height_m: int


@tool
def look_up(word: str = "") -> str:
    """Look a word up."""
    return word


def main(url: str, model: str) -> None:
    chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_retries=0)

    said = chat.invoke(HELLO)
    assert said.content == HELLO
    assert said.usage_metadata["output_tokens"] == 3
    assert "".join(part.content for part in chat.stream(HELLO)) == HELLO
    assert [each.content for each in chat.batch(["one", "two"])] == ["one", "two"]

    asked = chat.bind_tools([look_up], tool_choice="required").invoke(HELLO)
    assert [call["name"] for call in asked.tool_calls] == ["look_up"]
    found = chat.with_structured_output(Place, method="json_schema").invoke("the tower")
    assert found == Place(city="Paris", height_m=330)

    embedder = OpenAIEmbeddings(
        base_url=url, api_key="none", model=model, dimensions=8, check_embedding_ctx_length=False
    )
    assert [len(each) for each in embedder.embed_documents(["one", "two"])] == [8, 8]

    refusal = None
    try:
        chat.bind(temperature=9).invoke(HELLO)
    except BadRequestError as error:
        refusal = error.code
    assert refusal == "invalid_request"


if __name__ == "__main__":
    main(*sys.argv[1:])
