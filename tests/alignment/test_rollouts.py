import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.alignment.pairs import AnswerTokens, Comparison, lay_out
from puna.alignment.rollouts import (
    Answer,
    EngineSampler,
    RolloutConfig,
    RunningMoments,
    Task,
    cache_tokens,
    each_by,
    encode_task,
    load_scorer,
    sample_answers,
)
from puna.core.errors import PunaError, UsageError
from puna.inference import Engine, EngineConfig, Request, Sampling, generate
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.model.lora import lora_layers
from puna.tokenizer import Message, Tokenizer

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "context": 64}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["What is the sum of 4 and 5? It is 9."] * 4, 290, n_special=16)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Llama:
    built = Llama(LlamaConfig.parse(SHAPE | {"vocab_size": tokenizer.vocab_size}, where="test"))
    built.init_weights(2)
    return built


@pytest.fixture(scope="module")
def tasks(tokenizer: Tokenizer) -> list[Task]:
    asked = ("What is 4 and 5?", "the sum of 4?")
    return [encode_task(tokenizer, [Message("user", text)], {"question": text}) for text in asked]


def ids_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.ids for answer in answers]


def test_answers_to_a_prompt_differ_and_are_the_same_again(
    model: Llama, tokenizer: Tokenizer, tasks: list[Task]
) -> None:
    config = RolloutConfig(prompts=2, answers=4, max_new_tokens=8)
    sampler = EngineSampler(model, tokenizer, config, "fp32")
    first = sampler(model, tasks, 1)
    assert [answer.task for answer in first] == [tasks[0]] * 4 + [tasks[1]] * 4
    assert len({tuple(ids) for ids in ids_of(first)}) == 8
    assert ids_of(sampler(model, tasks, 1)) == ids_of(first)
    assert ids_of(sampler(model, tasks, 2)) != ids_of(first)


def test_a_prompt_is_computed_once_for_its_answers(
    model: Llama, tokenizer: Tokenizer, tasks: list[Task]
) -> None:
    engine = Engine(model, tokenizer, EngineConfig(page_size=8))
    sample_answers(engine, tasks[:1], 4, Sampling(max_new_tokens=2, temperature=1.0))
    whole_pages = (len(tasks[0].prompt) - 1) // engine.config.page_size * engine.config.page_size
    assert whole_pages > 0
    assert engine.stats().cached_tokens == 3 * whole_pages


def test_the_weights_as_they_stand_are_sampled(
    model: Llama, tokenizer: Tokenizer, tasks: list[Task]
) -> None:
    config = RolloutConfig(prompts=2, answers=4, max_new_tokens=8)
    sampler = EngineSampler(model, tokenizer, config, "fp32")
    before = sampler(model, tasks, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(0))
    after = sampler(model, tasks, 1)
    fresh = EngineSampler(copy.deepcopy(model), tokenizer, config, "fp32")(model, tasks, 1)
    assert ids_of(after) != ids_of(before)
    assert ids_of(after) == ids_of(fresh)


def test_adapters_are_sampled_with(model: Llama, tokenizer: Tokenizer, tasks: list[Task]) -> None:
    config = RolloutConfig(prompts=2, answers=4, max_new_tokens=8)
    add_lora(model, LoraConfig(rank=4))
    sampler = EngineSampler(model, tokenizer, config, "fp32")
    before = sampler(model, tasks, 1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(3))
    assert ids_of(sampler(model, tasks, 1)) != ids_of(before)


def test_an_end_of_turn_that_was_drawn_is_the_answers_last_token(
    model: Llama, tokenizer: Tokenizer, tasks: list[Task]
) -> None:
    with torch.no_grad():  # one token in twenty-five ends the turn
        model.lm_head.weight.zero_()  # type: ignore[union-attr]
    sampling = Sampling(max_new_tokens=100, temperature=1.0, logit_bias={tokenizer.eot_id: 2.5})
    answers = sample_answers(Engine(model, tokenizer), tasks, 20, sampling)
    ended = [answer for answer in answers if answer.ended]
    cut_off = [answer for answer in answers if not answer.ended]
    assert ended
    assert cut_off  # at the end of the context
    assert all(answer.ids[-1] == tokenizer.eot_id for answer in ended)
    assert all(tokenizer.eot_id not in answer.ids for answer in cut_off)
    assert all(len(answer.task.prompt) + len(answer.ids) == 64 for answer in cut_off)
    assert all("eot" not in answer.text for answer in ended)


def test_the_engines_chances_are_those_of_the_training_pass(
    model: Llama, tokenizer: Tokenizer, tasks: list[Task]
) -> None:
    sampling = Sampling(max_new_tokens=6, temperature=1.0, logprobs=0)
    requests = [Request(task.prompt, sampling) for task in tasks for _ in range(2)]
    made = generate(Engine(model, tokenizer), requests)
    tokens = [AnswerTokens(each.ids, [True] * 6) for each in made]
    groups = [Comparison(tasks[n].prompt, tuple(tokens[2 * n : 2 * n + 2])) for n in range(2)]
    with torch.no_grad():
        trained = lay_out(groups).logprobs(model)
    sampled = torch.tensor([entry.logprob for each in made for entry in each.logprobs])
    torch.testing.assert_close(trained, sampled, atol=1e-5, rtol=1e-5)


# --- scoring


def length(text: str, record: Mapping[str, Any]) -> float:
    return len(text) + record["bonus"]


def not_a_number(text: str, record: Mapping[str, Any]) -> float:
    return float("nan")


def answer(text: str) -> Answer:
    return Answer(Task([1], {"bonus": 10}), [2], text, ended=True)


def test_a_scoring_function_is_found_by_its_name() -> None:
    assert load_scorer(f"{__name__}:length")([answer("ab"), answer("")]) == [12.0, 10.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards", "write it as module:function"),
        ("no_such_module:score", "no module 'no_such_module': start where it lies, install"),
        ("json:score", "json has no function 'score': it has .*dumps"),
    ],
)
def test_a_scoring_function_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"scoring function '{name}': .*{message}|{message}"):
        load_scorer(name)


def test_a_score_that_is_no_number_stops_the_run() -> None:
    with pytest.raises(PunaError, match="gave nan for the answer 'so': it must return a finite"):
        each_by(not_a_number)([answer("so")])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=9), min_size=1, max_size=5))
def test_scores_are_shifted_and_scaled_by_all_so_far(parts: list[list[float]]) -> None:
    moments, so_far = RunningMoments(), []
    for part in parts:
        so_far += part
        found = moments.normalised(torch.tensor(part, dtype=torch.float64))
        everything = torch.tensor(so_far, dtype=torch.float64)
        spread = everything.std(correction=0)
        expected = (torch.tensor(part, dtype=torch.float64) - everything.mean()) / (spread + 1e-8)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_scoring_function_may_lie_in_the_working_directory(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards_here.py").write_text("def one(text, record):\n    return 1\n")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.chdir(tmp_path)
    answer = Answer(Task([1], {}), [2], "x", ended=True)
    assert load_scorer("rewards_here:one")([answer]) == [1.0]


def test_the_cache_holds_the_longest_answers_and_no_more(
    model: Llama, tokenizer: Tokenizer, tasks: list[Task]
) -> None:
    config = RolloutConfig(prompts=2, answers=3, max_new_tokens=20)
    longest = max(len(task.prompt) for task in tasks)
    ample = EngineSampler(model, tokenizer, config, "fp32")
    just = EngineSampler(model, tokenizer, config, "fp32", longest)
    assert just.engine.config.cache_tokens == cache_tokens(6, longest + 20) <= 6 * 64
    assert just(model, tasks, 1) == ample(model, tasks, 1)
