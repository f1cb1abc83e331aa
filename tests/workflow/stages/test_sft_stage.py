"""Tuning on a user's chats: what is watched, what is warned of, what is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import chats_file, killed_in_step, small_model

from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.data import PackedRows, write_tokens
from puna.evaluation.scoring import summed_logprobs
from puna.formats import load_model, save_model
from puna.formats.peft import load_adapter
from puna.inference import Engine, Request, Sampling, generate
from puna.model import LoraConfig, add_lora
from puna.tokenizer import Message
from puna.workflow.stages.corpus import exercises
from puna.workflow.stages.sft import SFTStage, run_sft
from puna.workflow.stages.training import Given
from puna.workflow.watch import greedy_answer, held_out_loss

LOOP = {"steps": 12, "batch_rows": 4, "learning_rate": 3e-3, "checkpoint_every": 5, "log_every": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = small_model(2, ffn_dim=48)
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return chats_file(tmp_path)


def tune(base: Path, folder: Path, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    config = SFTStage.parse({"row_length": 96, "loop": LOOP} | fields, where="test")
    log = EventLog(readers=(events.append,))
    folder.mkdir(exist_ok=True)
    given = Given(base, 3, exercises({"addition": 1.0}), log, {})
    facts = run_sft(config, given, folder)
    return facts, events


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]


def test_the_held_out_loss_and_answers_are_seen_while_it_trains(
    base: Path, data: Path, tmp_path: Path
) -> None:
    facts, events = tune(base, tmp_path / "sft", files=[data], validations=4, samples=2)
    validated = of_kind(events, "validation")
    assert [event["step"] for event in validated] == [0, 3, 6, 9, 12]
    assert validated[-1]["held_out_loss"] == facts["held_out_loss"]
    assert facts["held_out_loss"] < facts["held_out_loss_before"] - 0.5
    assert list(facts["held_out_losses"]) == ["0", "3", "6", "9", "12"]
    samples = of_kind(events, "sample")
    assert len(samples) == 10
    assert all(event["question"].startswith("Is ") for event in samples)
    assert facts["held_out_chats"] == 3


def test_watching_changes_nothing_and_a_resumed_run_knows_what_was_seen(
    base: Path, data: Path, tmp_path: Path
) -> None:
    watched, _ = tune(base, tmp_path / "a", files=[data], validations=12, samples=1)
    tune(base, tmp_path / "b", files=[data], validations=1)

    with killed_in_step(7):
        tune(base, tmp_path / "c", files=[data], validations=12)
    resumed, events = tune(base, tmp_path / "c", files=[data], validations=12)
    assert of_kind(events, "validation")[0]["step"] == 6, "the first five are not measured again"
    assert resumed["held_out_losses"] == watched["held_out_losses"]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] == weights[2]


def test_an_adapter_is_left_as_peft_writes_it_beside_the_merged_model(
    base: Path, data: Path, tmp_path: Path
) -> None:
    lora = {"rank": 4, "alpha": 8, "dora": True}
    facts, _ = tune(base, tmp_path / "sft", files=[data], lora=lora)
    assert facts["held_out_loss"] < facts["held_out_loss_before"]
    assert facts["merge_error"] < 1e-6  # fp32 keeps 24 bits
    merged, tokenizer = load_model(tmp_path / "sft" / "model")
    adapted, _ = load_model(base)
    load_adapter(tmp_path / "sft" / "adapter", adapted)
    ids = torch.tensor([tokenizer.encode("Is 7 big? No: 7 is small.")])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids), merged(ids), rtol=1e-4, atol=1e-5)


def test_files_are_mixed_and_written_in_the_format_that_is_chosen(
    base: Path, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"instruction": f"Say {n}", "output": str(n)} for n in range(30)]))
    files = [{"path": data, "weight": 1}, {"path": other, "weight": 3, "form": "alpaca"}]
    _, events = tune(base, tmp_path / "sft", files=files, chat_format="llama3.1", row_length=192)
    assert "90 chats" in of_kind(events, "note")[0]["text"]
    _, tokenizer = load_model(tmp_path / "sft" / "model")
    ids = tokenizer.chat.encode(tokenizer, [Message("user", "x")]).ids
    assert "Cutting Knowledge Date" in tokenizer.decode(ids)


def test_data_in_which_no_turn_ends_is_warned_of(base: Path, data: Path, tmp_path: Path) -> None:
    fields = {"files": [data], "row_length": 34, "too_long": "cut"}
    _, events = tune(base, tmp_path / "sft", **fields)
    warnings = [event["text"] for event in of_kind(events, "warning")]
    assert warnings[0] == "of the chats longer than 34 tokens 60 are cut, 0 are left out"
    assert "never stops" in warnings[1]


def test_a_row_in_which_nothing_is_trained_is_named(base: Path, data: Path, tmp_path: Path) -> None:
    quiet = {"role": "assistant", "content": "x", "train": False}
    row = {"messages": [{"role": "user", "content": "x"}, quiet]}
    data.write_text(data.read_text() + json.dumps(row))
    with pytest.raises(UsageError, match=r"my\.jsonl, line 61: no token is trained"):
        tune(base, tmp_path / "sft", files=[data])


def test_some_weights_and_some_none_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="some files have a weight and some have none"):
        tune(base, tmp_path / "sft", files=[{"path": data, "weight": 1}, data])


def test_the_held_out_loss_is_the_mean_over_tokens_of_their_own_logprobs(
    base: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(base)
    chats = [
        tokenizer.chat.encode(tokenizer, (Message("user", "a"), Message("assistant", "b" * n)))
        for n in range(1, 30)
    ]
    items = [(chat.ids, chat.trained) for chat in chats]
    rows = PackedRows(write_tokens(tmp_path / "t", items, tokenizer.vocab_size), 96)
    ids, trained = zip(*items, strict=True)
    expected = -sum(summed_logprobs(model, ids, trained)) / sum(map(sum, trained))
    assert held_out_loss(model, rows) == pytest.approx(expected, abs=1e-4)  # rounded to 4 digits


def test_an_answer_while_training_is_that_of_the_engine(base: Path) -> None:
    model, tokenizer = load_model(base)
    engine = Engine(model, tokenizer)
    sampling = Sampling(max_new_tokens=20)
    for text in ("Hi", "What is 3 + 4?", "x " * 40):
        messages = [Message("user", text)]
        prompt = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
        (expected,) = generate(engine, [Request(prompt, sampling, tokenizer.stop_ids)])
        ours = greedy_answer(model, tokenizer, messages, 20)
        assert ours == tokenizer.decode(expected.ids, skip_special=True)
    add_lora(model, LoraConfig(rank=2, base="nf4"))
    assert isinstance(greedy_answer(model, tokenizer, [Message("user", "Hi")], 5), str)
