"""What the endpoints' requests and answers share, as pydantic models: true to OpenAI's protocol.

Fields that nothing here knows are ignored, since clients keep sending new ones; a known field of a
wrong type or outside its bounds is an error. Everything has a bound.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MOST_TEXT = 2_000_000
"""Most characters of a text; the body's own limit is usually lower."""
MOST_CHOICES = 16


def _whole(value: object) -> object:
    """JSON knows one kind of number: 2.0 is an integer too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # after the bounds, which the schema loses otherwise


def only(what: str, *kinds: str) -> BeforeValidator:
    """Refuses other types of ``what`` by their names, where else a list of faults would come."""

    def check(value: object) -> object:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            known = ", ".join(kinds)
            raise ValueError(f"{what} of type '{kind[:40]}' are not supported here: use {known}")
        return value

    return BeforeValidator(check)


Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Content = Annotated[str, StringConstraints(max_length=MOST_TEXT)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE]
TokenCount = Annotated[int, Field(ge=1, le=10_000_000), WHOLE]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stops = StopText | Annotated[list[StopText], Field(max_length=16)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
ShortText = Annotated[str, StringConstraints(max_length=512)]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
LogitBias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(max_length=1024, json_schema_extra={"additionalProperties": False}),
]
JsonSchema = Annotated[dict[str, Any], Field(max_length=1000)]


class Body(BaseModel):
    """A part of a request: no guessing at types, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())


class Part(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(protected_namespaces=())


def _object_schema(schema: object) -> object:
    kind = schema.get("type", "object") if isinstance(schema, dict) else "object"
    if kind != "object":
        raise ValueError("a function's parameters are an object: set its type to 'object'")
    return schema


class FunctionDefinition(Body):
    """A function the model may call."""

    name: ToolName
    description: Content | None = None
    parameters: Annotated[JsonSchema, BeforeValidator(_object_schema)] | None = None
    """JSON schema of its arguments, an object."""
    strict: bool | None = None
    """Every call follows the schema; those that are forced do in any case."""


class SchemaFormat(Body):
    """A JSON schema the answer must follow."""

    name: ToolName = "answer"
    description: Content | None = None
    schema_: JsonSchema | None = Field(default=None, alias="schema")
    """None: any JSON object."""
    strict: bool | None = None
    """Answers follow the schema in any case."""


class StructuredOutputs(Body):
    """What the answer must look like, as in vLLM: exactly one of these."""

    json_: JsonSchema | None = Field(default=None, alias="json")
    """A JSON schema."""
    regex: Annotated[str, StringConstraints(min_length=1, max_length=10_000)] | None = None
    """A regular expression that matches the whole answer."""
    choice: Annotated[list[Name], Field(min_length=1, max_length=1000)] | None = None
    """The answer is one of these."""
    grammar: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = None
    """A context-free grammar in Lark's syntax with a rule ``start``."""


class SamplingFields(Body):
    """How tokens are chosen: fields of chat and completions alike."""

    model: Name = Field(examples=["smollm2"])
    temperature: float | None = Field(default=None, ge=0, le=2)
    """1 by default; 0 takes the most probable token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE] | None = None
    """How many answers; the i-th has the seed ``seed + i``."""
    stream: bool | None = None
    stop: Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | None = None
    """Drawn anew for each request by default."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    user: ShortText | None = None
    """Taken and not used."""
    top_k: Annotated[int, Field(ge=-1, le=1_000_000), WHOLE] | None = None
    """Sample from this many most probable tokens; 0 and -1 are all (as in vLLM)."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    ignore_eos: bool | None = None
    """Write on after the model's own end, to the length asked."""
    structured_outputs: StructuredOutputs | None = None


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool | None = None
    """Send the token counts in a last piece without choices."""


class PromptTokensDetails(Part):
    """Of the prompt's tokens."""

    cached_tokens: int
    """Those found in the prefix cache."""


class Usage(Part):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class GuardVerdict(Part):
    """What the safeguard thinks of an answer."""

    decision: Literal["allow", "warn", "block"]
    reason: str


class Extension(Part):
    """What Puna adds to the protocol."""

    guard: GuardVerdict


_EVENT = {
    "type": "object",
    "description": "One event; its data is a piece of the answer, or `[DONE]` at the end.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream` as server-sent events.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}
"""Declares the streamed answer of an endpoint beside the whole one."""
