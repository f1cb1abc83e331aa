"""Prompts in the four forms OpenAI's protocol allows: a text, texts, token ids, lists of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from puna.serving.call import Call
from puna.serving.schemas import Content, TokenId
from puna.tokenizer import Tokenizer

MOST_PROMPTS = 512

Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
Prompt = (
    Content
    | Annotated[list[Content], Field(min_length=1, max_length=MOST_PROMPTS)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS)]
)


@dataclass(frozen=True)
class Given:
    """One prompt: its tokens, and its text without special tokens."""

    ids: Sequence[int]
    text: str


def prompts_of(prompt: Prompt, tokenizer: Tokenizer, *, bos: bool) -> list[Given]:
    """The prompts; ``bos`` opens those given as text with the begin token, where there is one.

    Raises `UsageError` for token ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        return [_read(prompt, tokenizer, bos)]
    if isinstance(prompt[0], int):
        return [_read([i for i in prompt if isinstance(i, int)], tokenizer, bos)]
    return [_read(item, tokenizer, bos) for item in prompt if not isinstance(item, int)]


async def cleaned(prompt: Prompt, call: Call) -> Prompt:
    """The prompt without what the safeguard keeps from the model; token ids stay as they are."""
    if isinstance(prompt, str):
        return (await call.cleaned([prompt]))[0]
    texts = [item for item in prompt if isinstance(item, str)]
    return await call.cleaned(texts) if texts else prompt


def _read(given: str | Sequence[int], tokenizer: Tokenizer, bos: bool) -> Given:
    if isinstance(given, str):
        return Given(tokenizer.encode(given, bos=bos), given)
    return Given(given, tokenizer.decode(given, skip_special=True))
