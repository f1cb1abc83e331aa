"""Supervised fine-tuning: chats as packed rows in which only the answers are trained.

The objective is the one of pretraining (`puna.training.next_token`); what differs is the mask.
"""

from collections.abc import Sequence

from puna.core.errors import UsageError
from puna.tokenizer import Message, Tokenizer


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int, where: str
) -> tuple[list[int], list[bool]]:
    """Tokens of a chat and which of them are trained.

    Raises `UsageError` naming ``where`` when nothing in it is trained or it exceeds ``max_tokens``.
    """
    try:
        tokens = tokenizer.chat.encode(tokenizer, messages)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    if not any(tokens.trained):
        raise UsageError(f"{where}: no assistant message to learn from: add one")
    if len(tokens.ids) > max_tokens:
        raise UsageError(
            f"{where}: {len(tokens.ids)} tokens exceed the row length of {max_tokens}: "
            "shorten the chat or raise row_length"
        )
    return tokens.ids, tokens.trained
