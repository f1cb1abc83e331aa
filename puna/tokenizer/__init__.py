"""Byte-level BPE, special tokens, and the chat format with its training masks."""

from puna.tokenizer.chat import CHATML, LLAMA3, ChatFormat, ChatTokens, Message
from puna.tokenizer.stream import StreamDecoder
from puna.tokenizer.tokenizer import Tokenizer

__all__ = [
    "CHATML",
    "LLAMA3",
    "ChatFormat",
    "ChatTokens",
    "Message",
    "StreamDecoder",
    "Tokenizer",
]
