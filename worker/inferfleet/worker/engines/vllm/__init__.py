"""vLLM behind the port of an engine. ``plugin`` and ``engine`` are its two entrances.

Importing this package imports no vLLM: each engine core that vLLM starts imports ``plugin``.
"""
