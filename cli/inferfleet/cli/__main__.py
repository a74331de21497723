"""``python -m inferfleet.cli`` is the command ``inferfleet``, for callers that know only the interpreter."""

from __future__ import annotations

from inferfleet.cli.root import main

if __name__ == "__main__":
    main()
