"""``/v1/embeddings``: texts as vectors of length 1, the mean of the model's last hidden states."""

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from puna.serving.call import Call, call_of
from puna.serving.errors import ApiError
from puna.serving.prompts import Prompt, cleaned, prompts_of
from puna.serving.schemas import WHOLE, Body, Name, Part, ShortText

router = APIRouter(tags=["OpenAI"])


class EmbeddingRequest(Body):
    """Texts to embed."""

    model: Name
    input: Prompt = Field(examples=["The llama"])
    """A text, texts, the tokens of a text, or those of several."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers, or the bytes of little-endian 32-bit floats."""
    dimensions: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    """Only the model's own: a part of such a vector would mean nothing."""
    user: ShortText | None = None
    """Taken and not used."""


class Embedding(Part):
    """A text's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Part):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Part):
    """Vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@router.post("/v1/embeddings", response_model=EmbeddingList, operation_id="create_embedding")
async def create_embedding(
    body: EmbeddingRequest, call: Annotated[Call, Depends(call_of)]
) -> Response:
    """Embed texts. Fields not listed here are ignored."""
    served = call.hub.get(body.model)
    if served.adapter is not None:
        raise ApiError(
            400, "an adapter has no embeddings: name the model it belongs to", param="model"
        )
    n_dims = served.engine.engine.model.config.dim
    if body.dimensions not in (None, n_dims):
        raise ApiError(400, f"this model's vectors have {n_dims} dimensions", param="dimensions")
    given = prompts_of(await cleaned(body.input, call), served.tokenizer, bos=True)
    prompts = [prompt.ids for prompt in given]
    vectors = await call.embed(served, prompts)
    n_tokens = sum(map(len, prompts))
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(vector) if body.encoding_format == "base64" else vector.tolist(),
        }
        for index, vector in enumerate(vectors.numpy(force=True))
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
