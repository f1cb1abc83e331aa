"""The shield as a safeguard of the server, the chat and the evaluations."""

import threading

from puna.safety.safeguard import OutputFilter, Subject, Verdict
from puna.safety.shield.engine import engine
from puna.safety.shield.rules import languages
from puna.safety.shield.stream import Policy, ShieldStream


class ShieldFilter:
    """A `Safeguard` that lets every prompt in and watches the code of every answer."""

    def __init__(self, policy: Policy | None = None, *, preload: bool = False) -> None:
        """With ``preload`` a thread makes the languages ready, so that no answer waits for it."""
        self._policy = policy or Policy()
        if preload:
            threading.Thread(target=_load_all, name="shield", daemon=True).start()

    async def admit(self, subject: Subject) -> Verdict:  # noqa: ARG002  prompts are not its business
        """Every prompt is admitted."""
        return Verdict()

    def output_filter(self, subject: Subject) -> OutputFilter:  # noqa: ARG002  nor who asked
        """A stream of its own for each answer."""
        return ShieldStream(self._policy)


def _load_all() -> None:
    for language in languages():
        engine(language)
