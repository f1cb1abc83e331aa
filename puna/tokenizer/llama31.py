"""Llama 3.1's and 3.2's chat formats: Llama 3's turns, a preamble with dates, and tools.

The wording is that of the ``chat_template`` in Meta's folders of Llama 3.1, 3.2 and 3.3; a test
holds the tokens to those templates. One thing follows Meta's own ``chat_format.py`` (llama-models
0.3.0) instead: a call of ``code_interpreter`` is its bare code.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.tokenizer.chat import ChatFormat, Message, Turn, quote
from puna.tokenizer.tools import Tool, ToolCall

END_OF_MESSAGE = "<|eom_id|>"
"""Ends a call in a conversation with built-in tools: the assistant goes on after the result."""
PYTHON_TAG = "<|python_tag|>"
"""Opens a call of a built-in tool."""
CODE_INTERPRETER = "code_interpreter"

_ENVIRONMENT = "Environment: ipython\n"
_DATES = "Cutting Knowledge Date: {knowledge}\nToday Date: "
_HOW_TO_CALL = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)
_IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for "
    "a function call."
) + _HOW_TO_CALL
_IN_USER = (
    "Given the following functions, please respond with a JSON for a function call with its "
    "proper arguments that best answers the given prompt.\n\n"
) + _HOW_TO_CALL
_DATE_FORM = "%d %b %Y"
_TEMPLATE = Path(__file__).with_name("llama31.jinja")
_TODAY: ContextVar[str | None] = ContextVar("today", default=None)


def today() -> str:
    """What a format without a date of its own calls today, as ``26 Jul 2024``."""
    return _TODAY.get() or datetime.date.today().strftime(_DATE_FORM)


@contextmanager
def written_on(date: str) -> Iterator[None]:
    """Within it chats are written as on that day, whatever the clock says.

    So a run that is resumed after midnight goes on with the tokens it began with. What is saved is
    unchanged: a template that asks for the day goes on asking.
    """
    before = _TODAY.set(date)
    try:
        yield
    finally:
        _TODAY.reset(before)


@dataclass(frozen=True)
class Llama31Format(ChatFormat):
    """Every conversation opens with a system turn that names two dates.

    Where it has tools: their definitions stand before the first message of the user, a call is the
    whole of its turn (text beside it is left out), and a result is written as a JSON string.
    """

    date: str | None = None
    """What the preamble calls today, as ``26 Jul 2024``; None: what `today` says."""
    knowledge: str = "December 2023"
    """What it calls the end of the model's knowledge."""
    tools_in_user: bool = True
    """Whether definitions stand in the user's first turn; else in the system's."""
    has_builtin: bool = True
    """Whether there are built-in tools: Llama 3.1 has them, 3.2 does not."""

    def turns(
        self, messages: Sequence[Message], tools: Sequence[Tool], builtin_tools: Sequence[str]
    ) -> Iterator[Turn]:
        """The conversation as it is written."""
        if builtin_tools and not self.has_builtin:
            raise UsageError("Llama 3.2's chat format has no built-in tools: define tools instead")
        given = messages[0].role == "system"
        said = messages[0].content.strip() if given else ""
        preamble = self._preamble(tools, builtin_tools)
        trained = given and messages[0].trained
        yield Turn(self.roles["system"], preamble + said, self.end_of_turn, trained)
        rest = messages[1:] if given else messages
        if tools and self.tools_in_user:
            if not rest or rest[0].role != "user":
                raise UsageError("tools stand before the first message of the user: begin with one")
            text = _IN_USER + _definitions(tools) + rest[0].content.strip()
            yield Turn(self.roles["user"], text, self.end_of_turn, rest[0].trained)
            rest = rest[1:]
        for message in rest:
            yield self._turn(message, builtin_tools)

    def _preamble(self, tools: Sequence[Tool], builtin_tools: Sequence[str]) -> str:
        text = _ENVIRONMENT if tools or builtin_tools else ""
        if builtin_tools:
            shown = [name for name in builtin_tools if name != CODE_INTERPRETER]
            text += f"Tools: {', '.join(shown)}\n\n"
        text += f"{_DATES.format(knowledge=self.knowledge)}{self.date or today()}\n\n"
        if tools and not self.tools_in_user:
            text += _IN_SYSTEM + _definitions(tools)
        return text

    def _turn(self, message: Message, builtin_tools: Sequence[str]) -> Turn:
        role, trained = self.roles[message.role], message.trained
        if message.tool_calls:
            end = END_OF_MESSAGE if builtin_tools else self.end_of_turn
            first = message.tool_calls[0]
            if first.name in builtin_tools:
                return Turn(role, _builtin_call(message.tool_calls), end, trained, PYTHON_TAG)
            return Turn(role, self.tools.calls(message.tool_calls), end, trained)
        if role == self.roles["tool"]:
            text = json.dumps(message.content, ensure_ascii=False)
        else:
            text = message.content.strip()
        return Turn(role, text, self.end_of_turn, trained)

    def jinja(self) -> str:
        """The same format as a ``chat_template``, with the variables that Meta's own takes."""
        header, close = "".join(self.header).split("{role}")
        texts = {
            "begin": "".join(self.begin), "header": header, "close": close,
            "end": self.end_of_turn, "end_of_message": END_OF_MESSAGE, "tag": PYTHON_TAG,
            "environment": _ENVIRONMENT, "in_system": _IN_SYSTEM, "in_user": _IN_USER,
            "dates": _DATES.format(knowledge=self.knowledge), "code": CODE_INTERPRETER,
            "separator": self.tools.separator,
        }  # fmt: skip
        day = quote(self.date) if self.date else f"strftime_now({quote(_DATE_FORM)})"
        values = {
            "date_string": f"date_string if date_string is defined else {day}",
            "tools_in_user_message": "tools_in_user_message if tools_in_user_message is defined"
            f" else {str(self.tools_in_user).lower()}",
            "builtin": "builtin_tools or []" if self.has_builtin else "[]",
            "roles": str(dict(self.roles)),
            **{name: quote(text) for name, text in texts.items()},
        }
        lines = [f"{{%- set {name} = {value} %}}" for name, value in values.items()]
        return "\n".join([*lines, _TEMPLATE.read_text(encoding="utf-8")])


def _definitions(tools: Sequence[Tool]) -> str:
    return "".join(json.dumps(tool, ensure_ascii=False, indent=4) + "\n\n" for tool in tools)


def _builtin_call(calls: Sequence[ToolCall]) -> str:
    """What follows the tag: ``name.call(key="value")``, or bare code."""
    if len(calls) > 1:
        raise UsageError("Llama 3.1 calls one built-in tool at a time: split the turn")
    arguments = _arguments(calls[0])
    if calls[0].name == CODE_INTERPRETER:
        return str(arguments.get("code", ""))
    inner = ", ".join(f'{key}="{value}"' for key, value in arguments.items())
    return f"{calls[0].name}.call({inner})"


def _arguments(call: ToolCall) -> Mapping[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise UsageError(f"the arguments of a call of {call.name} are no JSON object: mend them")
    return arguments
