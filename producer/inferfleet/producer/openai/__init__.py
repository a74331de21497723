"""OpenAI's HTTP API in front of the queue, as ``inferfleet.gateway`` and ``openai_client`` answer it.

    requests     from a request to a job
    models       which pool answers for a model
    chunks       from a journal to the chunks of a stream
    streams      those chunks as server-sent events
    refusals     from an error to a status, with OpenAI's error object
    api          answers requests
    client       OpenAI's SDK on the queue, without a server
    transport    the SDK's transport

Nothing here listens: whoever has a request gets an answer for it.
"""
