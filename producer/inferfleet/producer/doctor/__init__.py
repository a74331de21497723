"""Looks for what is wrong with a fleet: with its services, its settings, its pools, its workers and its jobs.

    finding      what may be found, how bad it is, and what to do
    services     RabbitMQ and Redis, as they are seen from here
    fleet        pools, workers, and the jobs in the index
    diagnosis    all checks, in order

It changes nothing. Of each priority it reads only the oldest jobs, however many there are.
"""
