"""The commands ``inferfleet demo``, ``autoscale`` and ``local``: services and a fleet on this machine."""
