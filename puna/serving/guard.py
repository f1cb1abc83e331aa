"""One answer on its way through a safeguard: what was not released never leaves the server."""

from dataclasses import replace

from puna.inference import Delta, TokenLogprob
from puna.safety import OutputFilter, SlowFilter, Verdict


class Filtered:
    """Passes one answer's deltas through a filter, holding back ids as long as their text."""

    def __init__(self, output_filter: OutputFilter) -> None:
        self._filter = output_filter
        self._ids: tuple[int, ...] = ()
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self._held = 0
        """Characters pushed and not yet released."""

    @property
    def verdict(self) -> Verdict:
        """What the filter thinks so far."""
        return self._filter.verdict

    async def push(self, delta: Delta) -> Delta:
        """What of ``delta``, and of earlier ones, may leave; a block ends the answer."""
        text = self._filter.push(delta.text)
        if delta.finish is not None and self.verdict.decision != "block":
            if isinstance(self._filter, SlowFilter):
                await self._filter.settled()
            text += self._filter.flush()
        if self.verdict.decision == "block":
            return replace(delta, ids=(), text=text, logprobs=(), finish="content_filter")
        if not self._held and len(text) == len(delta.text):
            return delta if text == delta.text else replace(delta, text=text)
        self._held += len(delta.text) - len(text)
        ids, logprobs = self._ids + delta.ids, self._logprobs + delta.logprobs
        if self._held and delta.finish is None:
            self._ids, self._logprobs = ids, logprobs
            return replace(delta, ids=(), text=text, logprobs=())
        self._ids, self._logprobs = (), ()
        return replace(delta, ids=ids, text=text, logprobs=logprobs)
