"""OpenAI's HTTP API in front of the queue, as ``inferfleet.gateway`` and ``openai_client`` answer it.

    requests             from a request to a job
    models               which pool answers for a model
    chunks               from a journal to the chunks of a stream
    streams              those chunks as server-sent events
    lists                a page of a list
    refusals             from an error to a status, with OpenAI's error object
    api                  answers requests

    response_fields      the body of a request to the Responses API
    response_requests    from such a request to a chat
    response_items       from items to messages, and back
    response_events      from a journal to the events and the output of a response
    response_objects     the response itself
    stored_responses     finds responses, and what was said before one
    responses            answers requests to the Responses API
    conversations        answers requests to the Conversations API

    client               OpenAI's SDK on the queue, without a server
    transport            the SDK's transport

Nothing here listens: whoever has a request gets an answer for it.
"""
