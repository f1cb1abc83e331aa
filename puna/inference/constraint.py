"""Structured output: which tokens keep a text within a schema, an expression or a grammar.

The work is `llguidance`'s: it derives the mask of allowed tokens from the grammar, token by token.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from puna.core.errors import UsageError
from puna.tokenizer import Tokenizer

# Bounded, else a model may write blanks without end; one, or a line break with its indentation.
WHITESPACE = r"( |\n {0,16})?"


class _Wrapped:
    """A tokenizer as `llguidance` wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain)


class Grammar:
    """What one text must look like; follows the text token by token (see `Constraint`)."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size

    def mask(self) -> Tensor:
        """As `Constraint.mask`."""
        allowed = bytearray(self._matcher.compute_logit_bias())
        return torch.frombuffer(allowed, dtype=torch.uint8)[: self._size] != 0

    def accept(self, token: int) -> None:
        """As `Constraint.accept`."""
        self._matcher.consume_token(token)

    def finished(self) -> bool:
        """As `Constraint.finished`."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """As `Constraint.error`."""
        return self._matcher.get_error() or None


class Grammars:
    """Makes grammars over one tokenizer; making it takes some tenths of a second.

    Args:
        tokenizer: whose tokens make the texts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        wrapped = TokenizerWrapper(_Wrapped(tokenizer))
        self._tokenizer = LLTokenizer(wrapped, eos_token=sorted(tokenizer.stop_ids))
        self._size = tokenizer.vocab_size

    def json_schema(self, schema: Mapping[str, Any] | None) -> Grammar:
        """Texts that are JSON and follow ``schema``; None is any JSON object.

        Raises `UsageError` for a schema that is broken or uses what cannot be guaranteed.
        """
        options: Any = {"whitespace_pattern": WHITESPACE}
        try:
            text = json.dumps(dict(schema) if schema is not None else {"type": "object"})
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=options)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"the JSON schema cannot be read: {error}") from error
        return self._grammar(grammar, "JSON schema")

    def regex(self, pattern: str) -> Grammar:
        """Texts that match ``pattern`` as a whole (Rust's syntax: no look-around)."""
        return self._grammar(LLMatcher.grammar_from_regex(pattern), "regular expression")

    def lark(self, grammar: str) -> Grammar:
        """Texts of a context-free grammar in Lark's syntax, from its rule ``start``."""
        return self._grammar(LLMatcher.grammar_from_lark(grammar), "grammar")

    def _grammar(self, grammar: str, kind: str) -> Grammar:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:300]
            raise UsageError(f"the {kind} cannot be used: {reason}")
        return Grammar(matcher, self._size)
