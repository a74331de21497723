"""The engines a worker can run, each an adapter behind ``inferfleet.worker.ports.Engine``.

Nothing is imported here: a worker loads only the engine it was told to run.
"""
