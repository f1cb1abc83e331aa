"""Meta's Code Shield as a process that answers: run by the Python of its own environment.

One line of JSON for one line of JSON. A question has ``code``, ``language`` and ``mode``:

- ``codeshield``: ``CodeShield.scan_code``, what a user of the package calls;
- ``full``: its detector with every rule that it carries, as its evaluations may use it. Semgrep's
  rules for PHP lie in the package but are not switched on there; here they are.

An answer has ``cwes``, ``lines``, ``verdict``, ``seconds``, and for semgrep ``runs`` and
``scanned``, the files that semgrep itself says it has read: a run that read none is no scan,
whatever it reports.
"""

import asyncio
import json
import logging
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from codeshield.cs import CodeShield  # type: ignore[import-not-found]
from codeshield.insecure_code_detector import (  # type: ignore[import-not-found]
    insecure_code_detector as detector,
)
from codeshield.insecure_code_detector import insecure_patterns, oss
from codeshield.insecure_code_detector.analyzers import (  # type: ignore[import-not-found]
    Analyzer,
)
from codeshield.insecure_code_detector.languages import (  # type: ignore[import-not-found]
    Language,
)
from codeshield.insecure_code_detector.usecases import (  # type: ignore[import-not-found]
    UseCase,
)

_run_command = detector._run_command
_semgrep = {"runs": 0, "scanned": 0}


async def _counted(command: list[str]) -> str:
    output: str = await _run_command(command)
    _semgrep["runs"] += 1
    start = output.find("{")
    if start >= 0:
        paths = json.loads(output[start:]).get("paths", {})
        _semgrep["scanned"] += len(paths.get("scanned", ()))
    return output


class _Everything(list[str]):
    """Enabled rules of which every rule is one."""

    def __contains__(self, _rule: object) -> bool:
        return True


def use_every_rule() -> None:
    """Switch on all of the package's rules, and semgrep's folder for each language."""
    insecure_patterns.get_enabled_rules = lambda *_: _Everything()
    oss.SEMGREP_RULE_REPO_PATH = _all_semgrep_rules(oss.SEMGREP_RULE_REPO_PATH)
    detector.LANGUAGE_ANALYZER_MAP[Language.PHP].append(Analyzer.SEMGREP)


def _all_semgrep_rules(packaged: Path) -> Path:
    """A folder with one file of all rules for each language, in place of the selections."""
    import yaml

    folder = Path(tempfile.mkdtemp()) / "semgrep"
    (folder / "_generated_").mkdir(parents=True)
    for language in Language:
        places = [packaged / language.value, *([packaged / "c"] if language == "cpp" else [])]
        rules = [
            rule
            for place in places
            for path in sorted(place.rglob("*.yaml"))
            for rule in yaml.safe_load(path.read_text()).get("rules", ())
        ]
        if rules:
            for number, rule in enumerate(rules):
                rule["id"] = f"{rule['id']}-{number}"
                if language == "cpp":
                    rule["languages"] = ["cpp"]
            target = folder / "_generated_" / f"{language.value}_{UseCase.CYBERSECEVAL.value}.json"
            target.write_text(json.dumps({"rules": rules}))
    return folder


def answer(code: str, language: str, mode: str) -> dict[str, Any]:
    """Scan one piece of code."""
    _semgrep.update(runs=0, scanned=0)
    known = Language(language)
    start = time.perf_counter()
    if mode == "codeshield":
        result = asyncio.run(CodeShield.scan_code(code, known))
        issues, verdict = result.issues_found or [], result.recommended_treatment.value
    else:
        issues = asyncio.run(detector.analyze(known, code, usecase=UseCase.CYBERSECEVAL))
        verdict = "warn" if issues else "ignore"
    seconds = time.perf_counter() - start
    return {
        "cwes": [issue.cwe_id for issue in issues],
        "lines": [issue.line for issue in issues],
        "verdict": verdict,
        "seconds": seconds,
        "child_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "left_files": sum(1 for _ in Path(tempfile.gettempdir()).glob("tmp*.*")),
        **_semgrep,
    }


def main() -> None:
    """Answer until standard input ends."""
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what semgrep prints must not come between
    detector._run_command = _counted
    if sys.argv[1:] == ["full"]:
        use_every_rule()
    for line in sys.stdin:
        replies.write(json.dumps(answer(**json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
