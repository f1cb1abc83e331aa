"""Structured output: what is written fits, whatever the model would rather have said."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.inference import Engine, EngineConfig, Generation, Request, Sampling, generate
from puna.inference.constraint import Grammar
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TEXTS = ['{"name": "Ada", "age": 36, "tags": ["a"]}', "The llama eats grass. 2024-11-25"] * 30


@pytest.fixture(scope="module", params=[0, 3], ids=["plain", "speculating"])
def engine(request: pytest.FixtureRequest) -> Engine:
    tokenizer = Tokenizer.train(TEXTS, 300, n_special=16)
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    size = tokenizer.vocab_size + 5  # rows of the head that no token has
    model = Llama(LlamaConfig.parse(fields | {"vocab_size": size, "context": 256}, where="test"))
    model.init_weights(seed=0)
    return Engine(model, tokenizer, EngineConfig(cache_tokens=4096, speculation=request.param))


def written(engine: Engine, grammars: list[Grammar], seed: int) -> list[Generation]:
    sampling = Sampling(max_new_tokens=200, temperature=1.0, seed=seed)
    prompt = engine.tokenizer.encode("Ada")
    stops = engine.tokenizer.stop_ids
    return generate(engine, [Request(prompt, sampling, stops, constraint=g) for g in grammars])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_noise_becomes_json_that_fits_the_schema(engine: Engine, seed: int) -> None:
    for found in written(engine, [engine.grammars.json_schema(SCHEMA)], seed):
        assert found.stopped
        value = json.loads(found.text)
        assert list(value) == ["name", "age", "tags"]
        assert len(value["name"]) <= 8
        assert 0 <= value["age"] <= 150
        assert set(value["tags"]) <= {"a", "bc"}


def test_rows_of_a_batch_follow_grammars_of_their_own(engine: Engine) -> None:
    grammars = engine.grammars
    made = [
        grammars.regex(r"\d{4}-\d{2}-\d{2}"),
        grammars.lark('start: "yes" | "no"'),
        grammars.json_schema({"enum": ["red", "green"]}),
    ]
    date, answer, colour = written(engine, made, seed=1)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date.text)
    assert answer.text in ("yes", "no")
    assert json.loads(colour.text) in ("red", "green")


def test_a_mask_allows_exactly_the_tokens_that_keep_the_text_possible(engine: Engine) -> None:
    grammar = engine.grammars.regex("ab|ac")
    tokenizer = engine.tokenizer
    allowed = {tokenizer.token_bytes(i) for i in grammar.mask().nonzero().flatten().tolist()}
    possible = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert allowed == {b"a", b"ab", b"ac"} & possible


def test_an_any_object_constraint_gives_an_object(engine: Engine) -> None:
    grammar = engine.grammars.json_schema(None)
    assert not grammar.mask()[engine.tokenizer.encode("[")[0]]
    assert grammar.mask()[engine.tokenizer.encode("{")[0]]


@pytest.mark.parametrize(
    ("kind", "source", "part"),
    [
        ("regex", "((", "regular expression cannot be used"),
        ("lark", "start: missing", "missing"),
        ("json_schema", {"type": "colour"}, "JSON schema cannot be used"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_runs(
    engine: Engine, kind: str, source: object, part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        getattr(engine.grammars, kind)(source)


class Broken:
    """A constraint whose parser gives up after three tokens."""

    error: str | None = None
    taken = 0

    def mask(self) -> torch.Tensor:
        return torch.ones(300, dtype=torch.bool)

    def accept(self, token: int) -> None:
        self.taken += 1
        if self.taken == 3:
            self.error = "too complex"

    def finished(self) -> bool:
        return self.error is not None


def test_a_parser_that_gives_up_fails_its_own_row_only(engine: Engine) -> None:
    prompt, before = engine.tokenizer.encode("Ada"), engine.stats()
    sampling = Sampling(max_new_tokens=20, ignore_stop_tokens=True)
    bad = engine.submit(Request(prompt, sampling, constraint=Broken()))
    good = engine.submit(Request(prompt, sampling))
    last = {}
    while not engine.idle:
        last.update(dict(engine.step()))
    assert (last[bad].finish, last[bad].error) == ("error", "too complex")
    assert last[good].finish == "length"
    assert (engine.stats().failed, engine.stats().finished) == (
        before.failed + 1,
        before.finished + 1,
    )
