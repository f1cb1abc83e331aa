"""Safety: code is scanned, conversations judged, models attacked and measured.

Here is what a safeguard is; the rooms within make them.
"""

from puna.safety.safeguard import Decision, OutputFilter, Safeguard, Subject, Verdict

__all__ = ["Decision", "OutputFilter", "Safeguard", "Subject", "Verdict"]
