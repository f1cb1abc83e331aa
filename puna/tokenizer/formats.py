"""The chat formats Puna knows, and which of them a folder speaks."""

import re
from collections.abc import Collection
from dataclasses import replace

from puna.tokenizer.chat import ChatFormat
from puna.tokenizer.llama31 import Llama31Format
from puna.tokenizer.tools import HERMES_TOOLS, LLAMA3_TOOLS

LLAMA3 = ChatFormat(
    begin=("<|begin_of_text|>",),
    header=("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
    end_of_turn="<|eot_id|>",
    separator="",
    roles={
        "system": "system",
        "user": "user",
        "assistant": "assistant",
        "tool": "ipython",
        "ipython": "ipython",
    },
    end_of_text="<|end_of_text|>",
    tools=LLAMA3_TOOLS,
    pad="<|finetune_right_pad_id|>",
    stops=("<|eom_id|>",),
)
"""Llama 3's format (model card; ``llama_models/llama3/chat_format.py`` of llama-models 0.3.0)."""

LLAMA31 = Llama31Format(**vars(LLAMA3), date="26 Jul 2024")
"""Llama 3.1's and 3.3's format: the date is the one in their template."""

LLAMA32 = Llama31Format(**vars(LLAMA3), has_builtin=False)
"""Llama 3.2's format: the date is that of the day, and there are no built-in tools."""

CHATML = ChatFormat(
    begin=(),
    header=("<|im_start|>", "{role}\n"),
    end_of_turn="<|im_end|>",
    separator="\n",
    roles={"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"},
    end_of_text="<|endoftext|>",
    tools=HERMES_TOOLS,
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)
"""ChatML with SmolLM2's system prompt (the template in SmolLM2-135M-Instruct)."""

FORMATS = {"llama3": LLAMA3, "llama3.1": LLAMA31, "llama3.2": LLAMA32, "chatml": CHATML}
"""By the names that recipes and commands give them."""

_KNOWLEDGE = re.compile(r"Cutting Knowledge Date: (.+?)\\n")
_DATE = re.compile(r"""date_string = [^"'%]*["']([^"']+)["']""")
_IN_SYSTEM = re.compile(r"set tools_in_user_message = [^%]*\bfalse\b")


def chat_format_of(special: Collection[str], template: str | None) -> ChatFormat | None:
    """The format that a vocabulary's special tokens belong to, or None.

    ``template`` is the folder's own ``chat_template``: it tells Llama 3 from 3.1 and 3.2, and a
    ChatML folder keeps the default system prompt only if its template has it.
    """
    for known in (LLAMA3, CHATML):
        pieces = (*known.begin, *known.header, known.end_of_turn)
        if all(piece in special for piece in pieces if piece.startswith("<|")):
            return known if template is None else _as_in(template, known)
    return None


def _as_in(template: str, known: ChatFormat) -> ChatFormat:
    if known is LLAMA3:
        knowledge = _KNOWLEDGE.search(template)
        return known if knowledge is None else _dated(template, knowledge[1])
    default = known.default_system
    keep = default is None or default in template
    return known if keep else replace(known, default_system=None)


def _dated(template: str, knowledge: str) -> Llama31Format:
    """The format of a template with dates: Llama 3.1's and 3.2's, or one with a date of its own."""
    date = None if "strftime_now" in template else _DATE.search(template)
    return replace(
        LLAMA31,
        date=None if date is None else date[1],
        knowledge=knowledge,
        tools_in_user=_IN_SYSTEM.search(template) is None,
        has_builtin="builtin_tools" in template,
    )
