"""An OpenAI server that answers every chat at once, for a proxy in front of it: ``upstream.py PORT``."""

import sys

import orjson
from aiohttp import web
from plan import PAYLOAD

ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-no-op",
        "object": "chat.completion",
        "created": 0,
        "model": "no-op",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": PAYLOAD}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 250, "completion_tokens": 1, "total_tokens": 251},
    }
)


async def answer(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
