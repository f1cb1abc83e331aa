"""The chat format: conversations to tokens, with the training mask built while they are laid down.

Never by searching the finished text: what a user types cannot move the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from puna.core.errors import UsageError
from puna.tokenizer.tools import Tool, ToolCall, ToolFormat

if TYPE_CHECKING:  # the tokenizer holds its chat format: imported the other way round
    from puna.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (``system``, ``user``, ``assistant``, ``tool``) and what."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of an assistant's turn; they follow its content."""
    train: bool | None = None
    """Whether the loss counts this turn; None: if the assistant speaks."""

    @property
    def trained(self) -> bool:
        """Whether the loss counts this turn."""
        return self.role == "assistant" if self.train is None else self.train


@dataclass(frozen=True)
class Turn:
    """A turn as a format writes it."""

    role: str
    """Name in the header."""
    text: str
    """All of the content."""
    end: str
    """Special token after it."""
    trained: bool
    """Whether the loss counts the content and its end."""
    opening: str = ""
    """Special token before the text, or none; a part of the content."""


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as tokens; the three lists have equal length."""

    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    """Whether the loss counts this token: what is learned of a turn, and its end."""
    content: list[bool] = field(default_factory=list)
    """The same with the end of turn left out."""

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
        builtin_tools: Sequence[str] = (),
        add_generation_prompt: bool = False,
    ) -> ChatTokens:
        """Tokens and mask of a conversation; ``add_generation_prompt`` opens the next answer.

        Args:
            tools: functions the assistant may call, defined where the format does.
            builtin_tools: names of tools the model knows from its training (Llama 3.1 only).

        Raises `UsageError` for no messages, an unknown role, or an answer whose tokens do not
        decode back to it.
        """
        self._check(messages)
        row = ChatTokens()
        row.add([tokenizer.special_id(token) for token in self.begin])
        for turn in self.turns(messages, tools, builtin_tools):
            self._lay(row, tokenizer, turn)
        if add_generation_prompt:
            row.add(self._written(tokenizer, self.roles["assistant"]))
        return row

    def turns(
        self, messages: Sequence[Message], tools: Sequence[Tool], builtin_tools: Sequence[str]
    ) -> Iterator[Turn]:
        """The conversation as it is written; ``tools`` stand in the system turn."""
        if builtin_tools:
            raise UsageError("only Llama 3.1's chat format has built-in tools: define tools")
        for message in self._completed(messages, tools):
            text = message.content.strip()
            if message.tool_calls:
                text += ("\n" if text else "") + self.tools.calls(message.tool_calls)
            yield Turn(self.roles[message.role], text, self.end_of_turn, message.trained)

    def jinja(self) -> str:
        """The same format as a ``chat_template``; transformers gets equal ids from it."""
        before, after = map(quote, "".join(self.header).split("{role}"))
        close = quote(self.end_of_turn + self.separator)
        lines = [
            f"{{%- set roles = {dict(self.roles)} %}}",
            self._jinja_definitions(),
            f"{{{{- {quote(''.join(self.begin))} }}}}" if self.begin else "",
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
            f"{{{{- {quote(self.header_text('assistant'))} }}}}"
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

    def _lay(self, row: ChatTokens, tokenizer: Tokenizer, turn: Turn) -> None:
        ids = tokenizer.encode(turn.text)
        if turn.trained:
            _check_decodes(tokenizer, ids, turn.text)
        if turn.opening:
            ids.insert(0, tokenizer.special_id(turn.opening))
        row.add(self._written(tokenizer, turn.role))
        row.add(ids, trained=turn.trained, content=turn.trained)
        row.add([tokenizer.special_id(turn.end)], trained=turn.trained)
        row.add(tokenizer.encode(self.separator))

    def _written(self, tokenizer: Tokenizer, name: str) -> list[int]:
        """Ids of a header with this name."""
        ids: list[int] = []
        for piece in self.header:
            if piece.startswith("<|"):
                ids.append(tokenizer.special_id(piece))
            else:
                ids.extend(tokenizer.encode(piece.format(role=name)))
        return ids

    def header_text(self, role: str) -> str:
        """What stands before the content of a message with this role."""
        return "".join(self.header).format(role=self.roles[role])

    def _jinja_definitions(self) -> str:
        """A macro: `ToolFormat.definitions`."""
        return (
            f"{{%- macro definitions() %}}{{{{- {quote(self.tools.intro)} }}}}"
            "{%- for tool in tools %}{{- tool | tojson }}"
            "{{- '\\n' if not loop.last }}{%- endfor %}"
            f"{{{{- {quote(self.tools.outro)} }}}}{{%- endmacro %}}"
        )

    def _jinja_added_system(self) -> str:
        """The system turn of a conversation that has none."""
        default = self.default_system or ""
        opening = quote(self.header_text("system") + default)
        closing = quote(self.end_of_turn + self.separator)
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
        opening, key = quote(tools.opening + '{"name": '), quote(f', "{tools.arguments_key}": ')
        first = "'\\n' if content else ''"
        return (
            "{%- for call in message['tool_calls'] or [] %}"
            "{%- set function = call['function'] or call %}"
            f"{{{{- ({first}) if loop.first else {quote(tools.separator)} }}}}"
            f"{{{{- {opening} }}}}{{{{- function['name'] | tojson }}}}{{{{- {key} }}}}"
            "{{- function['arguments'] if function['arguments'] is string"
            " else function['arguments'] | tojson }}"
            f"{{{{- {quote(tools.after)} }}}}{{%- endfor %}}"
        )


def _check_decodes(tokenizer: Tokenizer, ids: Sequence[int], answer: str) -> None:
    if tokenizer.decode(ids) != tokenizer.canonical(answer):
        raise UsageError(
            f"this tokenizer cannot spell the answer {answer[:40]!r}: its tokens decode to "
            f"{tokenizer.decode(ids)[:40]!r}: clean the text or train a tokenizer with all bytes"
        )


def quote(text: str) -> str:
    """A Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
