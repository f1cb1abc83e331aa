"""Structured logs: one JSON object a line on standard error."""

import json
import sys
from datetime import UTC, datetime
from typing import Any


def log(**facts: Any) -> None:
    """Write one line; the time is added."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | facts
    sys.stderr.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    sys.stderr.flush()
