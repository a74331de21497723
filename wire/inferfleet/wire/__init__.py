"""RabbitMQ and Redis: connections, queues, and the records of jobs and sessions.

Producers, workers and the exporter share this package, which does not depend on any of them.
"""
