"""Meta's insecure code detector, in an interpreter of its own, and made to fail where it is blind.

Code Shield 1.0.1 with a semgrep newer than 1.99 scans no file in its second layer and reports
clean code. So the worker tries a known hole first, counts the files that semgrep looked at, and a
detector that looks at none raises.
"""

import asyncio
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from puna.core.errors import PunaError, UsageError

PYTHON = "PUNA_CODESHIELD"
"""Environment variable that names the interpreter which has ``codeshield``."""
INSTALL = (
    "python3 -m venv codeshield && codeshield/bin/pip install codeshield==1.0.1 semgrep==1.99.0"
)
_SECONDS = 120.0  # of one answer
_WORKER = Path(__file__).with_name("detector_worker.py")


@dataclass
class Detector:
    """Workers that analyze one answer each at a time.

    Attributes:
        versions: of ``codeshield`` and ``semgrep``.
        asked: answers that semgrep was to scan so far.
        scanned: those it scanned.
    """

    versions: dict[str, str]
    asked: int = 0
    scanned: int = 0
    _free: "asyncio.Queue[asyncio.subprocess.Process]" = field(default_factory=asyncio.Queue)
    _all: "list[asyncio.subprocess.Process]" = field(default_factory=list)

    @classmethod
    async def start(cls, python: str, workers: int | None = None) -> Self:
        """Start ``workers`` processes of this interpreter, as many as there are cores by default.

        Raises `UsageError` for an interpreter without the detector, `PunaError` for a detector
        whose semgrep finds nothing.
        """
        if shutil.which(python) is None:
            raise UsageError(f"no interpreter '{python}': make one with: {INSTALL}")
        made = cls({})
        try:
            for _ in range(workers or os.cpu_count() or 1):
                made.versions = await made._start_one(python)
        except BaseException:
            await made.close()
            raise
        return made

    async def _start_one(self, python: str) -> dict[str, str]:
        # not resolved: a virtual environment's interpreter is a link
        folder = Path(shutil.which(python) or python).absolute().parent
        process = await asyncio.create_subprocess_exec(
            python,
            str(_WORKER),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"},
            limit=64 * 1024**2,
        )
        self._all.append(process)
        hello = await self._line(process)
        if "error" in hello:
            raise UsageError(f"{python} has no detector ({hello['error']}): {INSTALL}")
        if not hello["works"]:
            raise PunaError(
                f"semgrep {hello['versions']['semgrep']} scanned 0 files for codeshield "
                f"{hello['versions']['codeshield']}, so every answer would seem clean: use a "
                "semgrep from 1.70 to 1.99"
            )
        self._free.put_nowait(process)
        versions: dict[str, str] = hello["versions"]
        return versions

    async def analyze(self, language: str, code: str, before: str) -> list[str]:
        """CWEs found in ``code``, which follows ``before``; none for clean code.

        Raises `PunaError` when the detector fails.
        """
        process = await self._free.get()
        try:
            job = {"language": language, "code": code, "before": before}
            assert process.stdin is not None
            process.stdin.write((json.dumps(job) + "\n").encode())
            await process.stdin.drain()
            found = await self._line(process)
        finally:
            self._free.put_nowait(process)
        if "error" in found:
            raise PunaError(f"the detector failed on an answer: {found['error']}")
        self.asked += found["asked"]
        self.scanned += found["scanned"]
        cwes: list[str] = found["cwes"]
        return cwes

    def check(self) -> None:
        """Raise `PunaError` when semgrep was asked and scanned no file at all."""
        if self.asked and not self.scanned:
            raise PunaError(
                f"semgrep {self.versions['semgrep']} scanned 0 of {self.asked} files: the "
                "detector's figures would be empty"
            )

    async def close(self) -> None:
        """End the workers."""
        for process in self._all:
            if process.returncode is None:
                process.kill()
            await process.wait()

    @staticmethod
    async def _line(process: "asyncio.subprocess.Process") -> dict[str, Any]:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _SECONDS)
            value: dict[str, Any] = json.loads(line)
        except (TimeoutError, ValueError) as error:
            raise PunaError("the detector's process hung or ended: run again") from error
        return value
