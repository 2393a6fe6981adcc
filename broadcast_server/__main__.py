"""`python -m broadcast_server`."""

from __future__ import annotations

from broadcast_server.cli import main

main()
