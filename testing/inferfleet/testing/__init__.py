"""For tests of what is built on inferfleet: applications that use a fleet, and engines that a worker runs.

``inferfleet.testing.engine_suite`` is what every engine has to pass. This package itself imports nothing.
"""
