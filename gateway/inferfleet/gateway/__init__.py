"""The gateway: OpenAI's HTTP API in front of the queue, and jobs over HTTP.

    settings        the gateway's settings
    server          the process: start, serve, stop
    connections     limits of one connection, before there is a request
    app             the application, put together
    gateway         what all routes share
    callers         who sends a request
    authentication  finding that out, by its API key
    api_keys        API keys, and their file
    admission       which jobs a key allows, and when
    openai_routes   OpenAI's endpoints, answered by ``inferfleet.producer.openai``
    response_routes OpenAI's responses and conversations, answered by the same package
    job_routes      jobs
    job_requests    what a caller may say of a job
    session_routes  sessions
    webhook_routes  endpoints for webhooks
    webhooks        telling endpoints what has ended
    bodies          reading a body, within limits
    hosts           which hosts a request may name
    waiting         waiting for an answer until the client goes away or the gateway stops
    json_answer     an answer in JSON
    documents       the OpenAPI document
    access_log      a line for each request, without prompts
    metrics         the metrics for Prometheus
    metrics_port    the port at which Prometheus scrapes them
    refusal_answer  answering with a refusal
    batches         files and batches
    ui              the web page

It keeps nothing, so that any gateway continues what another one has begun.
"""
