"""Request and answer of ``/v1/responses``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from puna.serving.chat_schemas import JsonObjectFormat, TextFormat
from puna.serving.schemas import (
    WHOLE,
    Body,
    CallId,
    Content,
    Extension,
    FunctionDefinition,
    Metadata,
    Name,
    Part,
    SchemaFormat,
    ShortText,
    TokenCount,
    ToolName,
    only,
)


class InputText(Body):
    """A piece of text, of the user or of an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: Content


class InputRefusal(Body):
    """A piece of an earlier answer that refused."""

    type: Literal["refusal"]
    refusal: Content


InputPart = Annotated[
    InputText | InputRefusal, only("parts", "input_text", "output_text", "refusal")
]
InputContents = Content | Annotated[list[InputPart], Field(max_length=1000)]


class InputMessage(Body):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContents


class InputCall(Body):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: CallId
    name: ToolName
    arguments: Content
    """JSON text of an object."""


class InputResult(Body):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: InputContents


class InputReasoning(Body):
    """Reasoning of another model's answer: taken and not used."""

    type: Literal["reasoning"]


InputItem = Annotated[
    InputMessage | InputCall | InputResult | InputReasoning,
    only("items", "message", "function_call", "function_call_output", "reasoning"),
]
Input = Content | Annotated[list[InputItem], Field(min_length=1, max_length=2048)]


class ResponseTool(FunctionDefinition):
    """A function the model may call."""

    type: Literal["function"]


FunctionOnly = Annotated[ResponseTool, only("tools", "function")]


class NamedTool(Body):
    """The one function that must be called."""

    type: Literal["function"]
    name: ToolName


class JsonSchemaFormat(SchemaFormat):
    """JSON that follows a schema."""

    type: Literal["json_schema"]


class TextOptions(Body):
    """What the answer must look like."""

    format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
        | None
    ) = None


class ResponseRequest(Body):
    """A conversation to go on with. Nothing is kept: send the whole of it each time."""

    model: Name = Field(examples=["smollm2"])
    input: Input = Field(examples=["Hello!"])
    instructions: Content | None = None
    """What the assistant is told to be; comes before ``input``."""
    max_output_tokens: TokenCount | None = None
    """Most new tokens; by default as many as the model's context has room for."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """1 by default; 0 takes the most probable token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    """With ``include`` of ``message.output_text.logprobs``: of this many tokens each."""
    include: Annotated[list[Name], Field(max_length=20)] | None = None
    """``message.output_text.logprobs`` is known; others are ignored."""
    stream: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionOnly], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    """Given back."""
    store: bool | None = None
    """Taken; nothing is kept."""
    background: bool | None = None
    """Not supported."""
    previous_response_id: Name | None = None
    """Not supported: nothing is kept."""
    truncation: Literal["auto", "disabled"] | None = None
    """Nothing is cut off: a conversation that is too long is an error."""
    user: ShortText | None = None
    """Taken and not used."""


Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputLogprob(Part):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class OutputLogprobs(OutputLogprob):
    """A token, its log-probability, and those of the most probable ones."""

    top_logprobs: list[OutputLogprob]


class OutputText(Part):
    """A piece of the answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any]
    logprobs: list[OutputLogprobs]


class OutputMessage(Part):
    """The text of the answer."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class OutputCall(Part):
    """A call the model makes."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class CachedTokens(Part):
    """Of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(Part):
    """Of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(Part):
    """Token counts."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class IncompleteDetails(Part):
    """Why the answer ended early."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseObject(Part):
    """The answer, with the settings it was made by."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    model: str
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage | None
    error: dict[str, Any] | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    metadata: dict[str, str]
    temperature: float
    top_p: float
    top_logprobs: int
    max_output_tokens: int | None
    tools: list[dict[str, Any]]
    tool_choice: Any
    parallel_tool_calls: bool
    text: dict[str, Any]
    truncation: str
    previous_response_id: None
    store: Literal[False]
    background: Literal[False]
    user: str | None
    puna: Extension | None = None
