"""Code Shield seen from our side: a process in its own environment, its results kept in a file."""

import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError, UsageError

SCRIPT = Path(__file__).with_name("shield_peer.py")
WORKING, AS_INSTALLED = "PUNA_CODESHIELD", "PUNA_CODESHIELD_AS_INSTALLED"
VERDICTS = {"ignore": "allow", "warn": "warn", "block": "block"}
KNOWN = ("c", "cpp", "csharp", "java", "javascript", "php", "python", "rust")
ALSO_KNOWN = ("kotlin", "ruby", "swift", "xml")  # by its regular expressions alone


class Peer:
    """One way to use Code Shield."""

    def __init__(self, python: str, mode: str, cache: Path, *, may_scan_nothing: bool) -> None:
        """``may_scan_nothing``: whether a semgrep that reads no file is a figure, not an error."""
        self._mode, self._may_scan_nothing = mode, may_scan_nothing
        self._versions = self._installed(python)
        cache.mkdir(parents=True, exist_ok=True)
        self._cache = cache / f"codeshield-{mode}-semgrep-{self._versions['semgrep']}.jsonl"
        self._known: dict[str, dict[str, Any]] = {}
        if self._cache.exists():
            for line in self._cache.read_text().splitlines():
                row = json.loads(line)
                self._known[row["key"]] = row
        self._scratch = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [python, str(SCRIPT), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": self._scratch.name},
        )
        self._runs = self._scanned = 0

    @staticmethod
    def _installed(python: str) -> dict[str, str]:
        ask = "from importlib.metadata import version as v; import codeshield; "
        ask += "print(v('codeshield'), v('semgrep'), *codeshield.__path__)"
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
        if done.returncode != 0:
            raise UsageError(f"{python} has no codeshield with semgrep: see this script's head")
        codeshield, semgrep, folder = done.stdout.split(maxsplit=2)
        return {"codeshield": codeshield, "semgrep": semgrep, "folder": folder.strip()}

    def facts(self) -> dict[str, Any]:
        """Versions, and what semgrep itself said it has read."""
        versions = {name: self._versions[name] for name in ("codeshield", "semgrep")}
        return versions | {"semgrep runs": self._runs, "files scanned": self._scanned}

    @property
    def folder(self) -> Path:
        """Where the package lies."""
        return Path(self._versions["folder"])

    def lines(self, code: str, language: str) -> set[int]:
        """Lines with a finding, now, whatever is known."""
        row = self.ask(code, language)
        self._count(row)
        return set(row["lines"])

    def verdict(self, code: str, language: str) -> str:
        """``allow``, ``warn`` or ``block``; languages it does not know are allowed."""
        if language not in KNOWN + ALSO_KNOWN:
            return "allow"
        key = hashlib.sha256(f"{language}\n{code}".encode()).hexdigest()
        row = self._known.get(key)
        if row is None:
            row = {"key": key} | self.ask(code, language)
            self._known[key] = row
            with self._cache.open("a") as out:
                out.write(json.dumps(row) + "\n")
        self._count(row)
        return VERDICTS[row["verdict"]]

    def ask(self, code: str, language: str) -> dict[str, Any]:
        """Scan now, whatever is known; raises `PunaError` when it ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"code": code, "language": language, "mode": self._mode}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise PunaError(f"Code Shield ended with {self._process.wait()}")
        row: dict[str, Any] = json.loads(line)
        return row

    def _count(self, row: dict[str, Any]) -> None:
        self._runs += row["runs"]
        self._scanned += row["scanned"]
        if row["runs"] and not row["scanned"] and not self._may_scan_nothing:
            raise PunaError(
                f"semgrep {self._versions['semgrep']} scanned 0 files: its figures would be those "
                "of a scanner that is off; install a version from 1.70 to 1.99"
            )

    def close(self) -> None:
        """End the process and remove what it left behind."""
        self._process.kill()
        self._process.wait()
        self._scratch.cleanup()


def peers_from_environment(cache: Path) -> dict[str, Peer]:
    """The ways to use Code Shield that the environment's variables allow, by name."""
    working, current = os.environ.get(WORKING), os.environ.get(AS_INSTALLED)
    if not working:
        raise UsageError(f"set {WORKING} to the Python of Code Shield's environment, or --no-peers")
    peers = {}
    if current:
        peers["as installed"] = Peer(current, "codeshield", cache, may_scan_nothing=True)
    peers["working semgrep"] = Peer(working, "codeshield", cache, may_scan_nothing=False)
    peers["all rules"] = Peer(working, "full", cache, may_scan_nothing=False)
    return peers
