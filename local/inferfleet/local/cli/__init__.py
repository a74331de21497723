"""The commands ``inferfleet demo`` and ``inferfleet local``: services and a fleet on this machine."""
