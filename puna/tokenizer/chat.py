"""The chat format: conversations to tokens, with the training mask built while they are laid down.

Never by searching the finished text: what a user types cannot move the mask.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from puna.core.errors import UsageError
from puna.tokenizer.tools import HERMES_TOOLS, LLAMA3_TOOLS, Tool, ToolCall, ToolFormat

if TYPE_CHECKING:  # the tokenizer holds its chat format: imported the other way round
    from puna.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (``system``, ``user``, ``assistant``, ``tool``) and what."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of an assistant's turn; they follow its content."""


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as tokens; the three lists have equal length."""

    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    """Whether the loss counts this token: an assistant's answer and its end of turn."""
    content: list[bool] = field(default_factory=list)
    """Whether this token is of an assistant's answer, its end of turn left out."""

    def add(self, ids: Sequence[int], *, trained: bool = False, content: bool = False) -> None:
        """Lay down ``ids`` with their marks."""
        self.ids.extend(ids)
        self.trained.extend([trained] * len(ids))
        self.content.extend([content] * len(ids))

    def last_answer(self) -> ChatTokens:
        """The same tokens with only the last answer flagged."""
        end = len(self.trained) - self.trained[::-1].index(True)
        start = end
        while start and self.trained[start - 1]:
            start -= 1
        return ChatTokens(
            list(self.ids),
            [flag and place >= start for place, flag in enumerate(self.trained)],
            [flag and place >= start for place, flag in enumerate(self.content)],
        )


@dataclass(frozen=True)
class ChatFormat:
    """How conversations are written. Content is stripped, as Llama 3's template does.

    Stripping also keeps headers whole: a line break that opened an answer would merge with the
    header's own into one token, half trained and half not.
    """

    begin: tuple[str, ...]
    """Special tokens that open a conversation."""
    header: tuple[str, ...]
    """What stands before a content: special tokens, and text in which ``{role}`` is filled."""
    end_of_turn: str
    """Special token after a content."""
    separator: str
    """Text after the end of turn."""
    roles: Mapping[str, str]
    """Role of a message -> its name in the header."""
    end_of_text: str
    """Special token that ends a document."""
    tools: ToolFormat
    """How tools and calls are written."""
    pad: str | None = None
    """Special token that fills rows, where the vocabulary has it."""
    stops: tuple[str, ...] = ()
    """Special tokens that end a generation besides end of text and end of turn."""
    default_system: str | None = None
    """System content of a conversation that opens without one."""

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = False,
    ) -> ChatTokens:
        """Tokens and mask of a conversation; ``add_generation_prompt`` opens the next answer.

        ``tools`` are defined in the system turn, which is added where there is none.

        Raises `UsageError` for no messages, an unknown role, or an answer whose tokens do not
        decode back to it.
        """
        self._check(messages)
        row = ChatTokens()
        row.add([tokenizer.special_id(token) for token in self.begin])
        for message in self._completed(messages, tools):
            self._lay_message(row, tokenizer, message)
        if add_generation_prompt:
            row.add(self._header_ids(tokenizer, "assistant"))
        return row

    def jinja(self) -> str:
        """The same format as a ``chat_template``; transformers gets equal ids from it."""
        before, after = map(_quote, "".join(self.header).split("{role}"))
        close = _quote(self.end_of_turn + self.separator)
        lines = [
            f"{{%- set roles = {dict(self.roles)} %}}",
            self._jinja_definitions(),
            f"{{{{- {_quote(''.join(self.begin))} }}}}" if self.begin else "",
            self._jinja_added_system(),
            "{%- for message in messages %}"
            "{%- if message['role'] not in roles %}"
            "{{- raise_exception('unknown role: ' + message['role']) }}{%- endif %}",
            "{%- set content = (message['content'] or '') | trim %}"
            f"{{{{- {before} + roles[message['role']] + {after} + content }}}}",
            "{%- if loop.first and tools and message['role'] == 'system' %}"
            "{{- '\\n\\n' if content }}{{- definitions() }}{%- endif %}",
            self._jinja_calls(),
            f"{{{{- {close} }}}}{{%- endfor %}}",
            "{%- if add_generation_prompt %}"
            f"{{{{- {_quote(self._header_text('assistant'))} }}}}"
            "{%- endif %}",
        ]
        return "\n".join(line for line in lines if line)

    def _check(self, messages: Sequence[Message]) -> None:
        if not messages:
            raise UsageError("the conversation is empty: give at least one message")
        for number, message in enumerate(messages, start=1):
            if message.role not in self.roles:
                known = ", ".join(self.roles)
                raise UsageError(f"message {number} has the role '{message.role}': use {known}")

    def _completed(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """The conversation with its system turn: the default one, and what defines ``tools``."""
        given = messages[0].role == "system"
        system = messages[0].content.strip() if given else self.default_system or ""
        if tools:
            system += ("\n\n" if system else "") + self.tools.definitions(tools)
        if given:
            return [replace(messages[0], content=system), *messages[1:]]
        return [Message("system", system), *messages] if system else list(messages)

    def _lay_message(self, row: ChatTokens, tokenizer: Tokenizer, message: Message) -> None:
        answer = message.role == "assistant"
        text = message.content.strip()
        if message.tool_calls:
            text += ("\n" if text else "") + self.tools.calls(message.tool_calls)
        ids = tokenizer.encode(text)
        if answer:
            _check_decodes(tokenizer, ids, text)
        row.add(self._header_ids(tokenizer, message.role))
        row.add(ids, trained=answer, content=answer)
        row.add([tokenizer.special_id(self.end_of_turn)], trained=answer)
        row.add(tokenizer.encode(self.separator))

    def _header_ids(self, tokenizer: Tokenizer, role: str) -> list[int]:
        ids: list[int] = []
        for piece in self.header:
            if piece.startswith("<|"):
                ids.append(tokenizer.special_id(piece))
            else:
                ids.extend(tokenizer.encode(piece.format(role=self.roles[role])))
        return ids

    def _header_text(self, role: str) -> str:
        return "".join(self.header).format(role=self.roles[role])

    def _jinja_definitions(self) -> str:
        """A macro: `ToolFormat.definitions`."""
        return (
            f"{{%- macro definitions() %}}{{{{- {_quote(self.tools.intro)} }}}}"
            "{%- for tool in tools %}{{- tool | tojson }}"
            "{{- '\\n' if not loop.last }}{%- endfor %}"
            f"{{{{- {_quote(self.tools.outro)} }}}}{{%- endmacro %}}"
        )

    def _jinja_added_system(self) -> str:
        """The system turn of a conversation that has none."""
        default = self.default_system or ""
        opening = _quote(self._header_text("system") + default)
        closing = _quote(self.end_of_turn + self.separator)
        wanted = "" if default else " and tools"
        gap = "'\\n\\n' + " if default else ""
        return (
            f"{{%- if messages[0]['role'] != 'system'{wanted} %}}{{{{- {opening} }}}}"
            f"{{%- if tools %}}{{{{- {gap}definitions() }}}}{{%- endif %}}"
            f"{{{{- {closing} }}}}{{%- endif %}}"
        )

    def _jinja_calls(self) -> str:
        """The calls of a message: `ToolFormat.calls`; arguments may be text or an object."""
        tools = self.tools
        opening, key = _quote(tools.opening + '{"name": '), _quote(f', "{tools.arguments_key}": ')
        first = "'\\n' if content else ''"
        return (
            "{%- for call in message['tool_calls'] or [] %}"
            "{%- set function = call['function'] or call %}"
            f"{{{{- ({first}) if loop.first else {_quote(tools.separator)} }}}}"
            f"{{{{- {opening} }}}}{{{{- function['name'] | tojson }}}}{{{{- {key} }}}}"
            "{{- function['arguments'] if function['arguments'] is string"
            " else function['arguments'] | tojson }}"
            f"{{{{- {_quote(tools.after)} }}}}{{%- endfor %}}"
        )


def _check_decodes(tokenizer: Tokenizer, ids: Sequence[int], answer: str) -> None:
    if tokenizer.decode(ids) != tokenizer.canonical(answer):
        raise UsageError(
            f"this tokenizer cannot spell the answer {answer[:40]!r}: its tokens decode to "
            f"{tokenizer.decode(ids)[:40]!r}: clean the text or train a tokenizer with all bytes"
        )


def _quote(text: str) -> str:
    """A Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


LLAMA3 = ChatFormat(
    begin=("<|begin_of_text|>",),
    header=("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
    end_of_turn="<|eot_id|>",
    separator="",
    roles={"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"},
    end_of_text="<|end_of_text|>",
    tools=LLAMA3_TOOLS,
    pad="<|finetune_right_pad_id|>",
    stops=("<|eom_id|>",),
)
"""Llama 3's format (model card; ``llama_models/llama3/chat_format.py`` of llama-models 0.3.0)."""

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


def chat_format_of(special: Collection[str], template: str | None) -> ChatFormat | None:
    """The format that a vocabulary's special tokens belong to, or None.

    ``template`` is the folder's own ``chat_template``: a ChatML folder keeps the default system
    prompt only if its template has it.
    """
    for known in (LLAMA3, CHATML):
        pieces = (*known.begin, *known.header, known.end_of_turn)
        if all(piece in special for piece in pieces if piece.startswith("<|")):
            default = known.default_system
            keep = template is None or default is None or default in template
            return known if keep else replace(known, default_system=None)
    return None
