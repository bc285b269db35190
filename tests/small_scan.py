"""Options of a scan that starts soon and takes little memory: what many tests share."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {"engine": "threads", "io_engine": "pread", "slot_bytes": 65536, "slots": 4}
