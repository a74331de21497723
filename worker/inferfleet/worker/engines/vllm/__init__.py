"""The adapter for vLLM. ``engine`` and ``plugin`` are its two entry points.

Importing this package does not import vLLM, because each engine core that vLLM starts imports ``plugin``.
"""
