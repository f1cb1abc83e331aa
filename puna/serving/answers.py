"""One answer as it grows: text, calls of tools, log-probabilities, why it ended."""

import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

from puna.inference import Delta, TokenLogprob
from puna.safety import Verdict
from puna.tokenizer import CallParser, Tokenizer
from puna.tokenizer.tools import Arguments, CallStart, Piece, Text

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
_LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI sends the same


@dataclass
class MadeCall:
    """A call the model makes."""

    name: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")
    arguments: str = ""
    """JSON text; whole once the answer has ended, unless its length was reached."""


class AnswerText:
    """Collects one answer's deltas.

    Args:
        parser: reads calls; None where no tool may be called.

    Attributes:
        text: so far, calls left out.
        calls: so far.
        logprobs: those asked for, one for each token.
        n_tokens: generated.
        finish: why it ended; None while it goes on.
    """

    def __init__(self, parser: CallParser | None = None) -> None:
        self._parser = parser
        self.text = ""
        self.calls: list[MadeCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.n_tokens = 0
        self.n_cached = 0
        self.finish: FinishReason | None = None

    def take(self, delta: Delta) -> list[Piece]:
        """Add a delta; what is new in it."""
        self.n_tokens += len(delta.ids)
        self.n_cached += delta.cached_tokens
        self.logprobs.extend(delta.logprobs)
        pieces = self._pieces(delta)
        for piece in pieces:
            match piece:
                case Text():
                    self.text += piece.text
                case CallStart():
                    self.calls.append(MadeCall(piece.name))
                case Arguments():
                    self.calls[-1].arguments += piece.text
        if delta.finish is not None:
            self.finish = self._reason(delta)
        return pieces

    def _pieces(self, delta: Delta) -> list[Piece]:
        if self._parser is None:
            return [Text(delta.text)] if delta.text else []
        pieces = self._parser.push(delta.text)
        return pieces + self._parser.flush() if delta.finish is not None else pieces

    def _reason(self, delta: Delta) -> FinishReason:
        if delta.finish in ("length", "content_filter"):
            return delta.finish
        return "tool_calls" if self.calls else "stop"


def guard_of(verdict: Verdict | None) -> dict[str, Any] | None:
    """What ``puna`` says in an answer that a safeguard watched."""
    if verdict is None:
        return None
    return {"guard": {"decision": verdict.decision, "reason": verdict.reason}}


def number(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, _LEAST_LOGPROB)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """How a token is shown: its text, or ``bytes:\\\\x..`` when it is part of a character."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_logprob(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, Any]:
    """A token's log-probability as chat answers and responses have it."""

    def shown(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        return {
            "token": raw.decode(errors="replace"),
            "logprob": number(logprob),
            "bytes": list(raw),
        }

    top = [shown(token, logprob) for token, logprob in entry.top]
    return shown(entry.id, entry.logprob) | {"top_logprobs": top}


def usage_of(n_prompt: int, n_cached: int, n_new: int) -> dict[str, Any]:
    """Token counts as chats and completions have them."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }
