"""Byte-level BPE, special tokens, and the chat format with its training masks."""

from puna.tokenizer.chat import CHATML, LLAMA3, ChatFormat, ChatTokens, Message
from puna.tokenizer.stream import StreamDecoder
from puna.tokenizer.tokenizer import Tokenizer
from puna.tokenizer.tools import CallParser, Tool, ToolCall

__all__ = [
    "CHATML",
    "LLAMA3",
    "CallParser",
    "ChatFormat",
    "ChatTokens",
    "Message",
    "StreamDecoder",
    "Tokenizer",
    "Tool",
    "ToolCall",
]
