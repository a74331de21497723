"""The contract on the wire: connections to RabbitMQ and Redis, the queues, and the record of a job.

Shared by everything that publishes and everything that consumes; knows nothing of either.
"""
