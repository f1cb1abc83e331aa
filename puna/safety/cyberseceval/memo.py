"""What was asked of a judge or a detector once is not asked again: replies kept in a file."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.files import explain_os_errors, sha256_value
from puna.inference import Sampling
from puna.safety.cyberseceval.detector import Detector
from puna.safety.models import ChatModel, Reply
from puna.tokenizer import Message


class Memo:
    """Values by key in a file of JSON lines; a line is written in one call.

    A line that a killed writer left torn is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._known: dict[str, Any] = {}
        with explain_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read(path)
            self._file = path.open("ab", buffering=0)

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        n_whole = 0
        with path.open("rb") as file:
            for content in file:
                try:
                    key, value = json.loads(content)
                except ValueError:
                    break
                self._known[key] = value
                n_whole += len(content)
        os.truncate(path, n_whole)

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value."""
        self._known[key] = value
        self._file.write((json.dumps([key, value]) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class KeptModel:
    """A model whose replies are kept.

    Args:
        model: who is asked; its sampling is greedy, so a reply is as good the second time.
        folder: where the file goes.
    """

    def __init__(self, model: ChatModel, folder: Path) -> None:
        self.name = model.name
        self.digest = model.digest
        self._model = model
        self._memo = Memo(folder / f"judge-{sha256_value(model.digest)[:8]}.jsonl")

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """See `ChatModel.reply`."""
        key = sha256_value(
            [[[m.role, m.content] for m in messages], sampling.model_dump(mode="json")]
        )
        known = self._memo.get(key)
        if known is not None:
            return Reply(**known)
        reply = await self._model.reply(messages, sampling)
        self._memo.put(key, vars(reply))
        return reply

    async def close(self) -> None:
        """Close the file; the model is closed by whoever opened it."""
        self._memo.close()


class KeptDetector:
    """Meta's detector, its findings kept.

    Args:
        detector: who is asked.
        folder: where the file goes.
    """

    def __init__(self, detector: Detector, folder: Path) -> None:
        self.versions = detector.versions
        self._detector = detector
        self._memo = Memo(folder / f"detector-{sha256_value(detector.versions)[:8]}.jsonl")

    async def analyze(self, language: str, code: str, before: str) -> list[str]:
        """See `Detector.analyze`."""
        key = sha256_value([language, code, before])
        known: list[str] | None = self._memo.get(key)
        if known is None:
            known = await self._detector.analyze(language, code, before)
            self._memo.put(key, known)
        return known

    def check(self) -> None:
        """See `Detector.check`."""
        self._detector.check()

    async def close(self) -> None:
        """Close the file; the detector is closed by whoever started it."""
        self._memo.close()
