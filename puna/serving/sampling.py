"""From a request's fields to the engine's requests: settings, seeds, constraints."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from puna.core.errors import UsageError
from puna.inference import Request, Sampling
from puna.inference.request import Constraint
from puna.serving.errors import ApiError
from puna.serving.hub import Served
from puna.serving.schemas import SamplingFields, StructuredOutputs

# not from the system each time: to ask it lets go of Python's lock, which the engine then takes
_SEEDS = random.Random()  # noqa: S311  nothing is secret about a seed
_LARGE = 4_000  # characters of a structure whose compilation would hold up the event loop


@dataclass(frozen=True)
class Structure:
    """What an answer must look like.

    Attributes:
        kind: how ``source`` is read.
        source: the schema (None is any JSON object), the expression or the grammar.
        param: the field of the request that asked for it.
    """

    kind: Literal["json", "regex", "lark"]
    source: Mapping[str, Any] | str | None
    param: str

    def compile(self, served: Served) -> Constraint:
        """A fresh constraint; raises `ApiError` 400 for a structure that cannot be used."""
        grammars = served.engine.engine.grammars
        try:
            if isinstance(self.source, str):
                make = grammars.regex if self.kind == "regex" else grammars.lark
                return make(self.source)
            return grammars.json_schema(self.source)
        except UsageError as error:
            raise ApiError(400, str(error), param=self.param, code="invalid_structure") from error


def structure_of(asked: StructuredOutputs | None) -> Structure | None:
    """The structure that the extension asks for; raises `ApiError` when it asks for several."""
    if asked is None:
        return None
    param = "structured_outputs"
    given = [
        None if asked.json_ is None else Structure("json", asked.json_, param),
        None if asked.regex is None else Structure("regex", asked.regex, param),
        None if asked.grammar is None else Structure("lark", asked.grammar, param),
        None if asked.choice is None else Structure("lark", _one_of(asked.choice), param),
    ]
    found = [structure for structure in given if structure is not None]
    if len(found) != 1:
        raise ApiError(400, "give one of json, regex, choice and grammar", param=param)
    return found[0]


def _one_of(texts: Sequence[str]) -> str:
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def sampling_of(
    fields: SamplingFields,
    *,
    max_new_tokens: int,
    logprobs: int | None,
    prompt_logprobs: bool = False,
) -> Sampling:
    """Settings of the first choice; OpenAI's default temperature is 1."""
    stop = fields.stop
    values: dict[str, Any] = {
        "temperature": 1.0 if fields.temperature is None else fields.temperature,
        "top_p": fields.top_p,
        "top_k": None if fields.top_k is None else max(fields.top_k, 0),
        "min_p": fields.min_p,
        "repetition_penalty": fields.repetition_penalty,
        "presence_penalty": fields.presence_penalty,
        "frequency_penalty": fields.frequency_penalty,
        "logit_bias": fields.logit_bias and {int(k): v for k, v in fields.logit_bias.items()},
        "seed": new_seed() if fields.seed is None else fields.seed,
        "stop": (stop,) if isinstance(stop, str) else stop and tuple(stop),
        "ignore_stop_tokens": fields.ignore_eos,
        "logprobs": logprobs,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return Sampling(max_new_tokens=max_new_tokens, prompt_logprobs=prompt_logprobs, **given)


def new_seed() -> int:
    """A seed for a request that names none."""
    return _SEEDS.getrandbits(63)


async def requests_of(
    served: Served,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    n: int = 1,
    structure: Structure | None = None,
) -> list[Request]:
    """``n`` requests for each prompt, one after the other; the i-th of a prompt has seed + i.

    Raises `ApiError` 400 for a structure that cannot be used.
    """
    constraints: Sequence[Constraint | None] = [None] * (n * len(prompts))
    if structure is not None:
        constraints = await _compiled(served, structure, len(constraints))
    seeded = [sampling.model_copy(update={"seed": sampling.seed + i}) for i in range(n)]
    return [
        Request(
            prompt,
            seeded[i],
            stop_ids=served.tokenizer.stop_ids,
            constraint=constraints[at * n + i],
            adapter=served.adapter,
        )
        for at, prompt in enumerate(prompts)
        for i in range(n)
    ]


async def _compiled(served: Served, structure: Structure, n: int) -> list[Constraint]:
    """As many constraints as answers; what takes long is made beside the event loop."""

    def compile_all() -> list[Constraint]:
        return [structure.compile(served) for _ in range(n)]

    if len(json.dumps(structure.source)) * n < _LARGE:
        return compile_all()
    return await asyncio.to_thread(compile_all)
