"""Shield: finds insecure code in files and in answers while they stream.

``scan(code, "python")`` gives a verdict and its findings. Code is parsed with tree-sitter; the
rules are data (``rules/*.yaml``). Nothing is run, no process is started, nothing is written.
"""

from puna.safety.shield.result import Finding, Result
from puna.safety.shield.rules import languages
from puna.safety.shield.scanner import scan

__all__ = ["Finding", "Result", "languages", "scan"]
