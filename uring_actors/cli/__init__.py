"""The command ``uring-actors``. Importing it loads nothing but click: ``--help`` answers at once."""

from __future__ import annotations

from uring_actors.cli.app import main

__all__ = ["main"]
