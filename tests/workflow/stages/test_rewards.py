"""Prompts and rewards as a recipe names them."""

import sys
from pathlib import Path

import pytest
import torch

from puna.alignment import RewardModel, by_reward_model, encode_task, save_reward_model
from puna.alignment.rollouts import Answer
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.data.generators import evaluation_questions
from puna.evaluation.questions import right_answer, right_sentence
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer
from puna.workflow.stage import Artifact
from puna.workflow.stages.corpus import Exercises
from puna.workflow.stages.rewards import (
    PromptStage,
    open_scorer,
    question_prompt,
    read_stage_prompts,
)
from puna.workflow.stages.training import Given

KINDS = {"addition": 1.0, "sorting": 1.0}


def tokenizer_of(text: str) -> Tokenizer:
    return Tokenizer.train([text * 3, "system user assistant"] * 20, 288, n_special=16)


def given(earlier: dict[str, Artifact] | None = None) -> Given:
    return Given("none", 3, Exercises(KINDS, ()), EventLog(), earlier or {})


def save_reward(folder: Path, tokenizer: Tokenizer) -> RewardModel:
    shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 32}
    config = LlamaConfig.parse(
        shape | {"vocab_size": tokenizer.vocab_size, "context": 64}, where=""
    )
    policy = Llama(config)
    policy.init_weights(0)
    model = RewardModel.from_policy(policy)
    torch.nn.init.normal_(model.score.weight)
    save_reward_model(folder, model, tokenizer)
    return model


def test_a_scoring_function_sees_the_row_and_the_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("What is 2 + 3? ")
    (prompt,) = read_stage_prompts(PromptStage(generated_prompts=1, reward="m:f"), given())
    task = encode_task(tokenizer, prompt.messages, prompt.record)
    texts = [str(prompt.record["full_answer"]), str(prompt.record["answer"]), "no idea"]
    answers = [Answer(task, [5], text, ended=True) for text in texts]
    score = open_scorer("puna.evaluation.questions:right_sentence", given(), tokenizer)
    assert list(score(answers)) == [1.0, 0.5, 0.0]


def test_generated_answers_are_judged_as_the_evaluation_judges() -> None:
    for question in evaluation_questions(3, 2, (), KINDS):
        record = question_prompt("q", question).record
        assert right_answer(question.full_answer, record) == right_sentence(
            question.full_answer, record
        )
        assert right_answer(question.wrong_answer, record) == 0
    with pytest.raises(UsageError, match="no kind"):
        right_answer("5", {"answer": "5"})


@pytest.mark.parametrize("by_stage", [True, False], ids=["stage", "folder"])
def test_a_reward_model_is_the_stages_or_a_folder(tmp_path: Path, by_stage: bool) -> None:
    tokenizer = tokenizer_of("What is 2 + 3? ")
    model = save_reward(tmp_path / "model", tokenizer)
    earlier = {"reward": Artifact(tmp_path, "d", {}, 0.0, skipped=False)}
    name = "reward" if by_stage else str(tmp_path / "model")
    score = open_scorer(name, given(earlier if by_stage else None), tokenizer)
    (prompt,) = read_stage_prompts(PromptStage(generated_prompts=1, reward="reward"), given())
    task = encode_task(tokenizer, prompt.messages, prompt.record)
    answers = [Answer(task, [5, 6], "", ended=True), Answer(task, [7], "", ended=False)]
    first, second = score(answers)
    assert [first, second] == pytest.approx(by_reward_model(model)(answers))
    assert first != second


def test_a_reward_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("What is 2 + 3? ")
    save_reward(tmp_path / "other", tokenizer_of("Llamas graze on the high plains. "))
    cases = {
        "reward": "add that stage",
        "nowhere": "no folder of a reward model",
        "no_such_module:score": "no module 'no_such_module'",
        str(tmp_path / "other"): "another tokenizer",
    }
    for name, said in cases.items():
        with pytest.raises(UsageError, match=said):
            open_scorer(name, given(), tokenizer)
    with pytest.raises(UsageError, match="no prompts"):
        PromptStage.parse({"reward": "m:f"}, where="recipe")


def test_another_version_of_a_scoring_function_is_another_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "rewards_that_change.py"
    monkeypatch.syspath_prepend(tmp_path)
    stage = PromptStage(generated_prompts=1, reward="rewards_that_change:score")
    assert not stage.circumstances()
    module.write_text("def score(text, record): return 1.0\n")
    sys.path_importer_cache.clear()
    before = stage.circumstances()
    module.write_text("def score(text, record): return 2.0\n")
    assert before != stage.circumstances()
