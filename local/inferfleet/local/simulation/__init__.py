"""Deterministic simulation: the product's own code in virtual time, on a schedule that can be repeated.

loop          who goes next: an event loop without a clock
network       connections, whose bytes are under way until the schedule lets them arrive
store         Redis: its keys; beside it streams, scripts, and answers as they are spelt
resp          what Redis' clients talk to
determinism   the list of what is made the same for each run
world         a fleet: producers, workers, broker and Redis, and what may happen to them
scenarios     what the clients do
plan          a schedule, in one line
play, judge   one schedule from its beginning to the verdict
forks         many of them
explore       which ones, and how one that breaks a promise is made short
mutations     faults put in on purpose, to see that they are found
"""
