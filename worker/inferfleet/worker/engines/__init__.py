"""The engines that a worker can run, each an adapter behind ``inferfleet.worker.ports.Engine``.

This module imports nothing, so that a worker loads only its own engine.
"""
