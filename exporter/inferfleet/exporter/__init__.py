"""Metrics of the whole fleet, one process for a cluster: what waits, for how long, and who works.

    settings     where the services are, and how often to look
    queues       what is asked of RabbitMQ
    management   over its HTTP API
    passive      over AMQP, which tells less
    estimates    the age of the oldest job and the throughput, from counters
    sampler      looks every few seconds
    metrics      what Prometheus gets
    server       the HTTP port

What cannot be known is left out, never shown as 0: an autoscaler would take 0 for a reason to scale in.
"""
