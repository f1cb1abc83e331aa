"""From a request's messages and tools to the prompt, and to how the answer is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from puna.serving.answers import AnswerText
from puna.serving.chat_schemas import (
    AssistantMessage,
    ChatMessage,
    Contents,
    TextPart,
    ToolMessage,
)
from puna.serving.errors import ApiError
from puna.serving.hub import Served
from puna.serving.sampling import Structure
from puna.serving.schemas import FunctionDefinition
from puna.tokenizer import CallParser, Message, Tool, ToolCall


@dataclass(frozen=True)
class Toolbox:
    """The tools of one request and what may be done with them."""

    tools: Sequence[Tool] = ()
    """In OpenAI's form; all of them are shown to the model."""
    choice: Literal["auto", "required"] = "auto"
    only: str | None = None
    """The one tool that must be called."""
    parallel: bool = True
    """Whether several calls may follow each other; kept where calls are forced or strict."""
    strict: frozenset[str] = frozenset()
    """Names of the tools whose calls follow their schemas also where none is forced."""

    @property
    def names(self) -> list[str]:
        """Names of the tools."""
        return [tool["function"]["name"] for tool in self.tools]

    def structure(self, served: Served, answer: Structure | None) -> Structure | None:
        """What the answer must look like, besides or instead of ``answer``."""
        if not self.tools or (self.choice == "auto" and answer is None and not self.strict):
            return answer
        format = served.tokenizer.chat.tools
        if self.choice == "auto" and answer is None:
            grammar = format.free_grammar(self.tools, self.strict, parallel=self.parallel)
            return Structure("lark", grammar, "tools")
        allowed = [t for t in self.tools if self.only in (None, t["function"]["name"])]
        schema: dict[str, Any] | None = None
        if self.choice == "auto" and answer is not None:
            if answer.kind != "json":
                raise ApiError(
                    400, "tools go with a JSON schema or with nothing", param=answer.param
                )
            assert not isinstance(answer.source, str), "a schema is no text"
            schema = {"type": "object"} if answer.source is None else dict(answer.source)
        grammar = format.grammar(allowed, parallel=self.parallel, answer=schema)
        return Structure("lark", grammar, "tools")

    def new_answer(self, served: Served) -> AnswerText:
        """Reads one answer."""
        if not self.tools:
            return AnswerText()
        return AnswerText(CallParser(served.tokenizer.chat.tools, self.names))


def toolbox_of(
    functions: Sequence[FunctionDefinition], choice: str | None, only: str | None, parallel: bool
) -> Toolbox:
    """The tools of a request; raises `ApiError` for choices that cannot be kept.

    Args:
        functions: what may be called.
        choice: "none", "auto" or "required"; None is "auto".
        only: name of the one that must be called.
        parallel: whether several calls may follow each other.
    """
    names = [function.name for function in functions]
    if only is not None and only not in names:
        raise ApiError(400, f"there is no tool '{only}'", param="tool_choice")
    if choice == "required" and not functions:
        raise ApiError(400, "a call is required and there are no tools", param="tool_choice")
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have the same name", param="tools")
    if choice == "none" and only is None:
        return Toolbox()
    tools = [_tool(function) for function in functions]
    forced = choice == "required" or only is not None
    strict = frozenset(function.name for function in functions if function.strict)
    return Toolbox(tools, "required" if forced else "auto", only, parallel and only is None, strict)


def _tool(function: FunctionDefinition) -> Tool:
    fields = function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    return {"type": "function", "function": fields}


def turns_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages as the tokenizer takes them."""
    return [_turn(message) for message in messages]


def _turn(message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message, AssistantMessage):
        calls = tuple(
            ToolCall(call.function.name, call.function.arguments)
            for call in message.tool_calls or ()
        )
        said = message.content if message.content is not None else message.refusal
        return Message(role, text_of(said or ""), calls)
    return Message(role, text_of(message.content))


def text_of(contents: Contents) -> str:
    """A content given whole or in parts."""
    if isinstance(contents, str):
        return contents
    return "".join(p.text if isinstance(p, TextPart) else p.refusal for p in contents)


def prompt_of(
    served: Served, turns: Sequence[Message], tools: Sequence[Tool], *, go_on: bool = False
) -> list[int]:
    """Tokens of a conversation up to where the answer begins.

    Args:
        served: whose chat format it is.
        turns: the conversation.
        tools: shown to the model.
        go_on: the answer continues the last turn instead of opening one.

    Raises `UsageError` for a model without chat tokens.
    """
    tokenizer = served.tokenizer
    if not go_on:
        chat = tokenizer.chat.encode(tokenizer, turns, tools=tools, add_generation_prompt=True)
        return chat.ids
    *before, last = turns
    if not before or last.role != "assistant" or last.tool_calls:
        raise ApiError(
            400,
            "only a text of the assistant that follows another message can be continued",
            param="continue_final_message",
        )
    chat = tokenizer.chat.encode(tokenizer, before, tools=tools, add_generation_prompt=True)
    return chat.ids + tokenizer.encode(last.content.strip())


def check_results_follow_calls(messages: Sequence[ChatMessage]) -> None:
    """Raise `ApiError` for the result of a call that nobody made."""
    made = set[str]()
    for number, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            made.update(call.id for call in message.tool_calls or ())
        elif isinstance(message, ToolMessage) and message.tool_call_id not in made:
            raise ApiError(
                400,
                f"the call '{message.tool_call_id[:80]}' is not in the conversation before it",
                param=f"messages[{number}].tool_call_id",
            )
