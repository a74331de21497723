"""A demo of a whole fleet on one machine, for people who see it for the first time.

The workers are separate processes, the jobs go through the broker, and the report at the end comes from the
records. The demo has no shortcut that a user's program would not have.
"""
