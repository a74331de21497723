"""The agents that the runners run. Put yours in its place."""

from inferfleet.agents import Agent, tool


@tool(repeatable=True)
def add(first: float, second: float) -> float:
    """Add two numbers."""
    return first + second


assistant = Agent(name="assistant", instructions="You add numbers with the tool.", tools=[add])
