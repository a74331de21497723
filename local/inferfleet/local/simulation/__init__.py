"""Deterministic simulation: the product's own code in virtual time, on a schedule that can be repeated.

loop          the event loop, without a clock, which decides which process runs next
network       connections, whose bytes are in flight until the schedule lets them arrive
store         Redis: its keys; beside it streams, scripts, and the encoding of replies
resp          the server for Redis' clients
determinism   everything that is made the same for each run
world         a fleet: producers, workers, broker and Redis, and what may happen to them
scenarios     what the clients do
plan          a schedule, in one line
play, judge   one schedule from its beginning to the verdict
forks         many schedules
explore       the search for schedules that break a promise, and their shortening
mutations     faults put in on purpose, to see that the explorer finds them
"""
