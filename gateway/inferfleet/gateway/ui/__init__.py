"""The web page of a gateway, at ``/ui``: server-rendered HTML, and a few small scripts.

    app             the application, put together; mounted by the gateway's
    sign_in         the cookie with the API key
    forms           reading a form, from our own pages only
    pages           making a page of a template
    words           numbers and times as words
    answers         what a response says, for a page
    job_pages       jobs
    session_pages   sessions
    batch_pages     batches
    letter_pages    dead letters
    fleet_pages     pools and workers
    rollout_pages   rollouts
    fleet_view      what they show, and the samples of the last hour
    rights          who may see the whole fleet
    plots           lines of a plot

It uses the methods that the API uses, so a tenant sees here what it sees there. Pages about the whole fleet
are only for a gateway without API keys.
"""
