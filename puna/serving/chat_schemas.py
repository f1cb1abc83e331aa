"""Request and answer of ``/v1/chat/completions``."""

from typing import Annotated, Literal

from pydantic import Field

from puna.serving.schemas import (
    WHOLE,
    Body,
    CallId,
    Content,
    Extension,
    FunctionDefinition,
    Metadata,
    Part,
    SamplingFields,
    SchemaFormat,
    ShortText,
    StreamOptions,
    TokenCount,
    ToolName,
    Usage,
    only,
)


class TextPart(Body):
    """A piece of text."""

    type: Literal["text"]
    text: Content


class RefusalPart(Body):
    """A piece of an answer that refused."""

    type: Literal["refusal"]
    refusal: Content


ContentPart = Annotated[TextPart | RefusalPart, only("parts", "text", "refusal")]
Contents = Content | Annotated[list[ContentPart], Field(max_length=1000)]


class FunctionCall(Body):
    """A function and its arguments."""

    name: ToolName
    arguments: Content
    """JSON text of an object."""


class CallTurn(Body):
    """A call the assistant made."""

    id: CallId
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Body):
    """What the assistant is told to be."""

    role: Literal["system", "developer"]
    content: Contents
    name: ShortText | None = None


class UserMessage(Body):
    """What the user says."""

    role: Literal["user"]
    content: Contents
    name: ShortText | None = None


class AssistantMessage(Body):
    """What the assistant said, and the calls it made."""

    role: Literal["assistant"]
    content: Contents | None = None
    refusal: Content | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[CallTurn], Field(max_length=128)] | None = None


class ToolMessage(Body):
    """The result of a call."""

    role: Literal["tool"]
    content: Contents
    tool_call_id: CallId


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionTool(Body):
    """A tool the model may use."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    """A function by name."""

    name: ToolName


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class TextFormat(Body):
    """Plain text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaFormat


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(SamplingFields):
    """A conversation to go on with."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)] = Field(
        examples=[[{"role": "user", "content": "Hello!"}]]
    )
    max_tokens: TokenCount | None = None
    """Most new tokens; by default as many as the model's context has room for."""
    max_completion_tokens: TokenCount | None = None
    """The same, and the one that counts where both are given."""
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    metadata: Metadata | None = None
    """Taken and not used."""
    add_generation_prompt: bool | None = None
    """Open the assistant's turn (as by default)."""
    continue_final_message: bool | None = None
    """Go on with the last message instead of opening a turn."""


class TopLogprob(Part):
    """A token that might have been."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TopLogprob):
    """A token with its log-probability."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Part):
    """Log-probabilities of a choice's tokens."""

    content: list[TokenLogprobs] | None
    refusal: None = None


class CalledFunction(Part):
    """A function and its arguments, JSON text."""

    name: str
    arguments: str


class CallMade(Part):
    """A call the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(Part):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[CallMade] | None = None


ChatFinish = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(Part):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ChatFinish
    puna: Extension | None = None


class ChatCompletion(Part):
    """The answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
