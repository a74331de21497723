"""Metrics of the whole fleet from one process per cluster: waiting jobs, their age, and the workers.

    settings     the exporter's settings
    queues       the port for counts from RabbitMQ
    management   counts over RabbitMQ's HTTP API
    passive      fewer counts, over AMQP
    estimates    the age of the oldest job and the throughput, from counters
    sampler      takes a snapshot every few seconds
    metrics      a snapshot as Prometheus metrics
    server       the HTTP server

An unknown value is left out, never shown as 0: an autoscaler would take 0 for a reason to scale in.
"""
