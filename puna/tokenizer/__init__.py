"""Byte-level BPE, special tokens, and the chat format with its training masks."""

from puna.tokenizer.chat import ChatFormat, ChatTokens, Message
from puna.tokenizer.formats import CHATML, FORMATS, LLAMA3, LLAMA31, LLAMA32
from puna.tokenizer.llama31 import today, written_on
from puna.tokenizer.stream import StreamDecoder
from puna.tokenizer.tokenizer import Tokenizer
from puna.tokenizer.tools import CallParser, Tool, ToolCall

__all__ = [
    "CHATML",
    "FORMATS",
    "LLAMA3",
    "LLAMA31",
    "LLAMA32",
    "CallParser",
    "ChatFormat",
    "ChatTokens",
    "Message",
    "StreamDecoder",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "today",
    "written_on",
]
