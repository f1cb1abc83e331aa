"""Safety: code is scanned, conversations judged, models attacked and measured.

Here is what a safeguard is; the rooms within make them.
"""

from puna.safety.safeguard import (
    Cleaner,
    Decision,
    OutputFilter,
    Safeguard,
    SlowFilter,
    Subject,
    Verdict,
)

__all__ = ["Cleaner", "Decision", "OutputFilter", "Safeguard", "SlowFilter", "Subject", "Verdict"]
