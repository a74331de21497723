"""A whole fleet at work on one machine, for somebody who sees it for the first time.

The workers are processes of their own, the jobs go through the broker, and what is reported at the end is
what the records say: nothing here has a shorter way than a user's program would have.
"""
