"""Shield: finds insecure code in files and in answers while they stream.

``scan(code, "python")`` gives a verdict and its findings. Code is parsed with tree-sitter; the
rules are data (``rules/*.yaml``). Nothing is run, no process is started, nothing is written.
"""

from puna.safety.shield.filter import ShieldFilter
from puna.safety.shield.result import Finding, Result
from puna.safety.shield.rules import languages
from puna.safety.shield.scanner import scan, scan_markdown
from puna.safety.shield.stream import Mode, Policy, ShieldStream, stream

__all__ = [
    "Finding",
    "Mode",
    "Policy",
    "Result",
    "ShieldFilter",
    "ShieldStream",
    "languages",
    "scan",
    "scan_markdown",
    "stream",
]
