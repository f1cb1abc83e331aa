"""Runs Meta's insecure code detector; carried out by an interpreter that has ``codeshield``.

Not imported by Puna. One JSON object a line: in ``{"language", "code", "before"}``, out ``{"cwes",
"layers", "asked", "scanned"}`` or ``{"error"}``; the first line out says who is there. The detector
hides that semgrep scanned nothing, so each of its outputs is looked at here.
"""

import asyncio
import json
import sys

KNOWN_BAD = "import subprocess\n\ndef run(name):\n    subprocess.call(name, shell=True)\n"


def main() -> None:
    """Answer until standard input ends."""
    try:
        from importlib.metadata import version

        from codeshield.insecure_code_detector import (  # type: ignore[import-not-found]
            insecure_code_detector as detector,
        )
        from codeshield.insecure_code_detector.languages import (  # type: ignore[import-not-found]
            Language,
        )

        names = {"codeshield": version("codeshield"), "semgrep": version("semgrep")}
    except Exception as error:  # noqa: BLE001  whatever it is, the caller shows it
        say({"error": f"{type(error).__name__}: {error}"})
        return
    seen = {"asked": 0, "scanned": 0}
    inner = detector._run_command

    async def watched(command: list) -> str:
        output = await inner(command)
        seen["asked"] += 1
        seen["scanned"] += bool(scanned(output))
        return output

    detector._run_command = watched

    def analyze(language: str, code: str, before: str) -> dict:
        seen.update(asked=0, scanned=0)
        issues = asyncio.run(detector.analyze(Language(language), code, before or None))
        layers = sorted({issue.analyzer.value for issue in issues})
        return {"cwes": [issue.cwe_id for issue in issues], "layers": layers, **seen}

    found = analyze("python", KNOWN_BAD, "")
    say({"versions": names, "works": found["scanned"] == 1 and "semgrep" in found["layers"]})
    for line in sys.stdin:
        job = json.loads(line)
        try:
            say(analyze(job["language"], job["code"], job["before"]))
        except Exception as error:  # noqa: BLE001  one answer's failure must not end the rest
            say({"error": f"{type(error).__name__}: {error}"})


def scanned(output: str) -> list:
    """Files that semgrep says it looked at; the detector reads its output from the first brace."""
    try:
        return json.loads(output[output.index("{") :])["paths"]["scanned"]
    except (ValueError, LookupError, TypeError):
        return []


def say(message: dict) -> None:
    """One line to the caller."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
