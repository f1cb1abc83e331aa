"""Models and their tokenizers: ``/v1/models``, ``/v1/tokenize``, ``/v1/detokenize``.

The paths without ``/v1`` are those of vLLM, which evaluation harnesses ask; there the model may be
left out.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import Field

from puna.core.errors import UsageError
from puna.serving.call import Call, call_of
from puna.serving.chat_schemas import ChatMessage, FunctionTool
from puna.serving.conversation import prompt_of, toolbox_of, turns_of
from puna.serving.hub import Served
from puna.serving.schemas import Body, Content, Name, Part, TokenId
from puna.tokenizer import Tokenizer

router = APIRouter(tags=["OpenAI"])
CallOf = Annotated[Call, Depends(call_of)]


class Model(Part):
    """A model or adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int
    """Most tokens of prompt and answer together."""


class ModelList(Part):
    """Everything that is served."""

    object: Literal["list"] = "list"
    data: list[Model]


class _ToTokens(Body):
    model: Name | None = None
    """The first one by default."""
    return_token_strs: bool | None = None


class TextToTokens(_ToTokens):
    """A text to cut into tokens."""

    prompt: Content = Field(examples=["The llama"])
    """The bare name of a special token is that token."""
    add_special_tokens: bool | None = None
    """Open the text with the begin token, where there is one (as by default)."""


class ChatToTokens(_ToTokens):
    """A conversation to cut into tokens, up to where the answer begins."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    """Tools that the system turn defines."""


class Tokens(Part):
    """A text's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    """Tokens to turn into text."""

    model: Name | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]


class Detokenized(Part):
    """The tokens' text, special tokens by name."""

    prompt: str


class TokenizerInfo(Part):
    """What a client needs to write prompts itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str
    pad_token: str
    eot_token: str
    vocab_size: int
    chat_template: str | None


@router.get("/v1/models", operation_id="list_models")
async def list_models(call: CallOf) -> ModelList:
    """Every model and adapter."""
    return ModelList(data=[_model(call.hub.get(name)) for name in call.hub.names()])


@router.get("/v1/models/{model:path}", operation_id="retrieve_model")
async def retrieve_model(model: str, call: CallOf) -> Model:
    """A model or adapter by name."""
    return _model(call.hub.get(model))


@router.post("/v1/tokenize", operation_id="tokenize")
@router.post("/tokenize", include_in_schema=False)
async def tokenize(body: TextToTokens | ChatToTokens, call: CallOf) -> Tokens:
    """Cut a text or a conversation into tokens."""
    served = _served(call, body.model)
    tokenizer = served.tokenizer
    ids = _ids(body, served)
    strings = [tokenizer.token_bytes(i).decode(errors="replace") for i in ids]
    return Tokens(
        count=len(ids),
        max_model_len=served.context,
        tokens=ids,
        token_strs=strings if body.return_token_strs else None,
    )


@router.post("/v1/detokenize", operation_id="detokenize")
@router.post("/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeRequest, call: CallOf) -> Detokenized:
    """Turn tokens into text."""
    return Detokenized(prompt=_served(call, body.model).tokenizer.decode(body.tokens))


@router.get("/v1/tokenizer_info", operation_id="tokenizer_info")
@router.get("/tokenizer_info", include_in_schema=False)
async def tokenizer_info(call: CallOf, model: str | None = None) -> TokenizerInfo:
    """The special tokens and the chat template."""
    tokenizer = _served(call, model).tokenizer

    def name(token: int) -> str:
        return tokenizer.token_bytes(token).decode()

    return TokenizerInfo(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=None if tokenizer.bos_id is None else name(tokenizer.bos_id),
        eos_token=name(tokenizer.eos_id),
        pad_token=name(tokenizer.pad_id),
        eot_token=name(tokenizer.eot_id),
        vocab_size=tokenizer.vocab_size,
        chat_template=_template(tokenizer),
    )


def _served(call: Call, name: str | None) -> Served:
    return call.hub.get(call.hub.names()[0] if name is None else name)


def _model(served: Served) -> Model:
    return Model(
        id=served.name, created=served.created, owned_by="puna", max_model_len=served.context
    )


def _template(tokenizer: Tokenizer) -> str | None:
    try:
        return tokenizer.chat.jinja()
    except UsageError:  # a tokenizer without chat tokens
        return None


def _ids(body: TextToTokens | ChatToTokens, served: Served) -> list[int]:
    tokenizer = served.tokenizer
    if isinstance(body, ChatToTokens):
        functions = [tool.function for tool in body.tools or ()]
        tools = toolbox_of(functions, None, None, parallel=True).tools
        return prompt_of(served, turns_of(body.messages), tools)
    special = _special_named(tokenizer, body.prompt)
    if special is not None:
        return [special]
    return tokenizer.encode(body.prompt, bos=body.add_special_tokens is not False)


def _special_named(tokenizer: Tokenizer, text: str) -> int | None:
    """The special token called ``text``: harnesses look up the ids of names they were given."""
    named = (i for i in tokenizer.special_ids if tokenizer.token_bytes(i) == text.encode())
    return next(named, None)
