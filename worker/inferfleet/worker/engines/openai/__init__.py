"""The adapter for servers that speak OpenAI's HTTP API, vLLM's among them. ``engine`` is its entry point."""
