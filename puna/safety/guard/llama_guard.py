"""A Llama Guard model as a classifier, in this process or behind an address."""

import math
from collections.abc import Mapping, Sequence

from puna.core.errors import PunaError
from puna.inference import Request, Sampling, TokenLogprob
from puna.safety.guard.features import as_spoken
from puna.safety.guard.hazards import HAZARDS, Hazard
from puna.safety.guard.judgement import Judgement
from puna.safety.guard.prompt import guard_prompt, read_answer
from puna.safety.models import ChatModel, LocalModel
from puna.tokenizer import Message, Tokenizer

MAX_NEW_TOKENS = 48
"""Room for ``unsafe`` and every code."""
_TOP = 20  # log-probabilities looked at for the other answer


class LocalLlamaGuard:
    """A Llama Guard model of this machine; its score is the probability of the answer ``unsafe``.

    Args:
        model: closed by `close`.
        hazards: those it is asked about.
    """

    def __init__(self, model: LocalModel, hazards: Sequence[Hazard] = HAZARDS) -> None:
        self.name = model.name
        self._model = model
        self._hazards = hazards

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokens the model reads: Llama Guard's prompt as a user's turn, the answer opened."""
        tokenizer = self._model.engine.engine.tokenizer
        asked = [Message("user", guard_prompt(messages, self._hazards))]
        return tokenizer.chat.encode(tokenizer, asked, add_generation_prompt=True).ids

    async def judge(self, messages: Sequence[Message]) -> Judgement:
        """See `Classifier.judge`."""
        engine = self._model.engine
        tokenizer = engine.engine.tokenizer
        sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=0, logprobs=_TOP)
        request = Request(self.prompt_ids(messages), sampling, frozenset(tokenizer.stop_ids))
        text, tokens = "", list[TokenLogprob]()
        async for delta in await engine.submit(request):
            if delta.error is not None:
                raise PunaError(f"{self.name}: the guard model failed: {delta.error}")
            text += delta.text
            tokens += delta.logprobs
        unsafe, codes = read_answer(text, self._hazards)
        return Judgement(unsafe, _score(tokenizer, tokens, unsafe), codes)

    async def close(self) -> None:
        """See `Classifier.close`."""
        await self._model.close()


class RemoteLlamaGuard:
    """A Llama Guard model behind an address: it says safe or unsafe, without a score.

    Args:
        model: closed by `close`.
        hazards: those it is asked about.
        framed: whether the prompt is written here and sent as one turn, for models whose server
            has no template of Llama Guard; else the conversation is sent as it is.
    """

    def __init__(
        self, model: ChatModel, hazards: Sequence[Hazard] = HAZARDS, *, framed: bool = False
    ) -> None:
        self.name = model.name
        self._model = model
        self._hazards = hazards
        self._framed = framed

    async def judge(self, messages: Sequence[Message]) -> Judgement:
        """See `Classifier.judge`."""
        spoken = as_spoken(messages)
        asked = [Message("user", guard_prompt(spoken, self._hazards))] if self._framed else spoken
        sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=0)
        unsafe, codes = read_answer((await self._model.reply(asked, sampling)).text, self._hazards)
        return Judgement(unsafe, float(unsafe), codes)

    async def close(self) -> None:
        """See `Classifier.close`."""
        await self._model.close()


def _score(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob], unsafe: bool) -> float:
    """Probability of ``unsafe`` against ``safe`` at the first token that tells them apart."""
    for token in tokens:
        if not tokenizer.decode([token.id]).strip():
            continue  # line breaks before the answer
        shares = _shares(tokenizer, {token.id: token.logprob, **dict(token.top)})
        total = sum(shares.values())
        return shares["unsafe"] / total if total else float(unsafe)
    return float(unsafe)


def _shares(tokenizer: Tokenizer, logprobs: Mapping[int, float]) -> dict[str, float]:
    """Probability of each answer among the tokens that begin it."""
    shares = {"safe": 0.0, "unsafe": 0.0}
    for token, logprob in logprobs.items():
        begun = tokenizer.decode([token]).strip().lower()
        for word in shares:
            if begun and word.startswith(begun):
                shares[word] += math.exp(logprob)
    return shares
