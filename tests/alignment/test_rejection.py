import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
import torch

from puna.alignment.rejection import (
    PAIRS,
    SCORED,
    SFT_ROWS,
    Prompt,
    RejectionConfig,
    RejectionReport,
    expected_best,
    sample_best,
)
from puna.alignment.reward import RewardModel, score
from puna.alignment.rollouts import Answer, Task, each_by
from puna.alignment.scoring import by_reward_model, last_number, reasoning_gym, reasoning_gym_rows
from puna.core.errors import UsageError
from puna.core.events import Event, EventLog
from puna.data import read_chats
from puna.inference import Engine, EngineConfig
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Message, Tokenizer

FIELDS = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "context": 128}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["What is the sum of 4 and 5? It is 9, the capital of Peru is Lima."] * 4
    return Tokenizer.train(texts, 300, n_special=16)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    built = Llama(LlamaConfig.parse(FIELDS | {"vocab_size": tokenizer.vocab_size}, where="test"))
    built.init_weights(2)
    with torch.no_grad():
        built.lm_head.weight.mul_(8)  # some tokens far more likely than others
        built.lm_head.weight[tokenizer.eot_id] = built.lm_head.weight.abs().mean(0)
    return built.eval()


def engine_of(model: Llama, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer, EngineConfig(cache_tokens=4096, max_rows=64, page_size=8))


def prompts(n: int) -> list[Prompt]:
    return [
        Prompt((Message("user", f"What is {i}?"),), {"number": i, "answer": str(i)})
        for i in range(n)
    ]


def by_place(answers: Sequence[Answer]) -> list[float]:
    """A score that a token's id fixes: well spread, and known for every token."""
    return [(answer.ids[0] * 37 % 101) / 101 for answer in answers]


def run(
    engine: Engine,
    asked: list[Prompt],
    folder: Path,
    events: EventLog | None = None,
    **config: object,
) -> RejectionReport:
    settings = {"answers": 4, "prompts_at_once": 3, "max_new_tokens": 12} | config
    return sample_best(
        engine,
        asked,
        each_by(lambda text, record: -float(len(text))),
        RejectionConfig.parse(settings, where="rejection"),
        folder,
        events or EventLog(),
        origin={"model": "tiny"},
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_expected_best_is_the_mean_over_all_subsets() -> None:
    scores = [0.3, -1.0, 2.0, 0.3, 0.9, 5.0]
    for k in range(1, 7):
        direct = fmean(max(kept) for kept in combinations(scores, k))
        assert expected_best(scores, k) == pytest.approx(direct, rel=1e-12)


def test_best_of_sixteen_rises_as_the_order_statistic_predicts(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    asked = prompts(1) * 160
    report = sample_best(
        engine_of(model, tokenizer),
        asked,
        by_place,
        RejectionConfig(answers=16, prompts_at_once=32, max_new_tokens=1),
        tmp_path,
        EventLog(),
        origin={},
    )
    ids = tokenizer.chat.encode(tokenizer, asked[0].messages, add_generation_prompt=True).ids
    with torch.inference_mode():
        chance = torch.softmax(model(torch.tensor([ids]))[0, -1].double(), 0)
    scores = torch.tensor([(token * 37 % 101) / 101 for token in range(len(chance))]).double()
    order = scores.argsort()
    below = chance[order].cumsum(0)
    for k in (1, 2, 4, 8, 16):  # the best of k is at most x with chance F(x) ** k
        at_most = below**k
        exact = float((scores[order] * torch.diff(at_most, prepend=torch.zeros(1))).sum())
        # 2,560 draws in 160 groups; scores lie in [0, 1], the mean's standard error is below 0.01
        assert report.best_of[k] == pytest.approx(exact, abs=0.03)
    assert report.best_of[16] > report.best_of[1] + 0.2


def test_the_best_becomes_a_chat_and_with_the_worst_a_pair(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    report = run(engine_of(model, tokenizer), prompts(7), tmp_path, max_new_tokens=40)
    scored = lines(tmp_path / SCORED)
    assert len(scored) == report.prompts == 7
    chats, pairs = list(read_chats(tmp_path / SFT_ROWS)), lines(tmp_path / PAIRS)
    assert len(chats) == report.sft_rows > 0
    assert len(pairs) == report.pairs > 0
    kept = {chat.messages[0].content: chat.messages[-1].content for chat in chats}
    for row in scored:
        ended = [a["text"] for a in row["answers"] if a["ended"] and a["text"].strip()]
        asked = row["prompt"][-1]["content"]
        assert kept.get(asked, "").strip() == min(ended, key=len, default="").strip()
        for pair in pairs:
            if pair["prompt"][-1]["content"] == asked:
                assert pair["chosen"] == min(ended, key=len)
                assert len(pair["rejected"]) == -min(row["scores"])


def test_a_stopped_run_goes_on_and_ends_like_a_straight_one(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    engine = engine_of(model, tokenizer)
    straight = run(engine, prompts(8), tmp_path / "straight")

    def stop(event: Event) -> None:
        if event["done"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(engine, prompts(8), tmp_path / "stopped", EventLog(readers=(stop,)))
    path = tmp_path / "stopped" / SCORED
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 25])  # and the disk lost the end of the last line
    done: list[tuple[str, int]] = []
    log = EventLog(readers=(lambda event: done.append((event["kind"], event["done"])),))
    assert run(engine, prompts(8), tmp_path / "stopped", log) == straight
    assert done == [("rejection_resume", 3), ("rejection_step", 6), ("rejection_step", 8)]
    for name in (SCORED, SFT_ROWS, PAIRS):
        ours, theirs = tmp_path / "stopped" / name, tmp_path / "straight" / name
        assert ours.read_bytes() == theirs.read_bytes()


def test_other_settings_or_prompts_are_refused_and_the_thresholds_may_change(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    engine = engine_of(model, tokenizer)
    first = run(engine, prompts(3), tmp_path)
    with pytest.raises(UsageError, match=r"was begun with temperature 1\.0, now it is 0\.5"):
        run(engine, prompts(3), tmp_path, temperature=0.5)
    with pytest.raises(UsageError, match="was begun with prompts"):
        run(engine, prompts(4), tmp_path)
    stricter = run(engine, prompts(3), tmp_path, least_score=1e9, least_gap=1e9)
    assert (stricter.sft_rows, stricter.pairs) == (0, 0)
    assert stricter.best_of == first.best_of


def test_a_prompt_is_computed_once_for_all_its_answers(
    model: Llama, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    engine = engine_of(model, tokenizer)
    run(engine, prompts(2), tmp_path, answers=8)
    stats = engine.stats()
    assert stats.cached_tokens > 0.7 * stats.prompt_tokens


def test_a_reward_models_scorer_reads_the_conversation_it_would_be_given(
    model: Llama, tokenizer: Tokenizer
) -> None:
    judge = RewardModel.from_policy(model)
    with torch.no_grad():
        judge.score.weight.normal_(generator=torch.Generator().manual_seed(1))
    asked = Message("user", "What is 4 and 5?")
    prompt = tokenizer.chat.encode(tokenizer, [asked], add_generation_prompt=True).ids
    texts = ["It is 9.", "Lima"]
    answers = [
        Answer(Task(prompt, {}), [*tokenizer.encode(text), tokenizer.eot_id], text, True)
        for text in texts
    ]
    expected = score(judge, tokenizer, [[asked, Message("assistant", text)] for text in texts])
    assert by_reward_model(judge)(answers) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [("4 and 5 make 9.", "9", 1), ("9 or 8", "9", 0), ("1,200", 1200, 1), ("none", "7", 0)],
)
def test_the_last_number_is_the_one_that_counts(text: str, answer: object, reward: float) -> None:
    assert last_number(text, {"answer": answer}) == reward


def test_reasoning_gyms_own_score_is_given_to_what_stands_in_the_tags() -> None:
    rows = list(reasoning_gym_rows("basic_arithmetic", 3, seed=1))
    for row in rows:
        assert row["messages"] == [{"role": "user", "content": row["question"]}]
        assert reasoning_gym(f"Well. <answer>{row['answer']}</answer>", row) == 1
        assert reasoning_gym(row["answer"], row) == 1
        assert reasoning_gym("<answer>none</answer>", row) < 0.5
    with pytest.raises(UsageError, match=r"reasoning-gym: .*nothing_like_it"):
        next(reasoning_gym_rows("nothing_like_it", 1, seed=1))
