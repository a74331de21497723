"""``inferfleet top``: the fleet on a terminal.

    command    the command, and one snapshot without the extra
    tables     a snapshot as tables of text, for any width
    app        the live view, with Textual
    screens    what opens above it: a pool's jobs, a job, a question, the help

The tables show a ``FleetSnapshot``. Everything is read with ``Fleet``, never from RabbitMQ or Redis directly.
"""
