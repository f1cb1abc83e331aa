"""SFT beside TRL's SFTTrainer (packed) and transformers' Trainer (padded): same weights and texts.

    python benchmarks/sft.py                 # about 3 minutes
    python benchmarks/sft.py --quick
    python benchmarks/sft.py --shape 1b --vocabulary 128256      # on a GPU

A Llama of 23.6M parameters besides its tied embedding of 8,192 tokens, or one of Llama 3.2's shapes
on a GPU; texts of chat length, 16 to 400 tokens, most of them short. Tokens are those of the texts,
padding left out. Puna and TRL pack into rows of 512 and take 4 a step, on a GPU 8 of 2,048; Trainer
takes 16 texts a step, padded to the longest. Each side runs with its defaults: Puna and TRL in
bf16, TRL with activation checkpointing, Trainer in fp32. ``--bf16`` lets Trainer have bf16 too. On
a GPU Puna also tunes by QLoRA of rank 16, recomputing activations, to be compared with its full
tuning by all the memory that is held. `memory.py` does so on CPU.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import tuning
from harness import Claim

ROW, ROWS, TEXTS_A_STEP = (2048, 8, 16) if tuning.on_gpu() else (512, 4, 16)
STEPS = 40
QLORA_SHARE = 0.15
N_TEXTS = 8000 if tuning.on_gpu() else 1000
OURS = ("puna", "qlora") if tuning.on_gpu() else ("puna",)
SIDES = (*OURS, "trl", "transformers")


def texts() -> list[list[int]]:
    """Texts of chat length: half of them have fewer than 100 tokens."""
    rng = np.random.default_rng(2)
    lengths = np.clip(rng.lognormal(np.log(100), 0.8, N_TEXTS).astype(int), 16, 400)
    return [tuning.random_ids(rng, int(n), int(n)) for n in lengths]


def run_puna(folder: Path, side: str) -> None:
    from puna.core.events import EventLog
    from puna.data import PackedRows, write_tokens
    from puna.formats import load_model
    from puna.model import LoraConfig, add_lora
    from puna.training import LoopConfig, RowSource, next_token, train

    turns, qlora = tuning.Turns(), side == "qlora"
    model, _ = load_model(folder, device="cpu" if qlora else tuning.device())
    if qlora:  # as `puna sft` does: in fp32 the base never lies on the GPU
        add_lora(model, LoraConfig(base="nf4", rank=16))
        model.to(tuning.device())
    items = [(ids, [True] * len(ids)) for ids in texts()]
    rows = PackedRows(write_tokens(folder / "tokens", items, model.config.vocab_size), ROW)
    loop = LoopConfig(
        steps=STEPS, batch_rows=ROWS, learning_rate=tuning.LEARNING_RATE, log_every=STEPS,
        checkpoint_every=STEPS, compile=tuning.on_gpu(),
        recompute="full" if qlora else "none",
    )  # fmt: skip
    batches = RowSource(rows, 1, loop)
    counts: list[int] = []

    def source(step: int, _share: object) -> list[Any]:
        turns.begin()
        made = batches(step)
        counts.append(sum(batch.n_tokens for batch in made))
        return made

    train(
        model, next_token, source, loop, folder / f"{side}-points", EventLog(),
        after_step=lambda _step, _model: turns.end(counts.pop(0)),
    )  # fmt: skip


def run_peer(folder: Path, side: str, *, bf16: bool) -> None:
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )
    from trl import SFTConfig, SFTTrainer

    turns = tuning.Turns()
    counts: list[int] = []

    common: dict[str, Any] = {
        "output_dir": str(folder / side),
        "use_cpu": not tuning.on_gpu(),
        "learning_rate": tuning.LEARNING_RATE,
        "max_steps": STEPS,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = Dataset.from_list([{"input_ids": ids} for ids in texts()])
    if side == "trl":
        settings = SFTConfig(
            **common, packing=True, max_length=ROW, per_device_train_batch_size=ROWS
        )
        trainer = SFTTrainer(
            model, args=settings, train_dataset=data, processing_class=tokenizer,
            callbacks=[tuning.turn_taking(turns, counts)],
        )  # fmt: skip
    else:
        trainer = Trainer(
            model,
            args=TrainingArguments(**common, bf16=bf16, per_device_train_batch_size=TEXTS_A_STEP),
            train_dataset=data,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            callbacks=[tuning.turn_taking(turns, counts)],
        )
    collate = trainer.data_collator

    def counting(examples: list[Any]) -> Any:
        counts.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = counting
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--folder", type=Path, help="keep the model here, or use the one that is")
    parser.add_argument("--shape", choices=tuning.SHAPES, default="small")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--bf16", action="store_true", help="transformers' Trainer in bf16")
    parser.add_argument("--quick", action="store_true", help="two steps in place of five")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    if arguments.side in OURS:
        run_puna(arguments.folder, arguments.side)
        return
    if arguments.side:
        run_peer(arguments.folder, arguments.side, bf16=arguments.bf16)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        n_params = tuning.build_folder(folder, arguments.vocabulary, arguments.shape)
        mode = ["--bf16"] if arguments.bf16 else []
        commands = {
            s: [__file__, "--side", s, "--folder", str(folder), *mode] for s in arguments.sides
        }
        found = tuning.measure(commands, 2 if arguments.quick else 5, ours=OURS)
    tuning.show(found)
    full = [side for side in found if side != "qlora"]
    memory = {side: tuning.working_bytes(found[side], n_params) / 1e9 for side in full}
    report = {"machine": tuning.machine(), "sides": found, "working_gb": memory}
    aims = {"trl": ("packed", 1.5, "TRL"), "transformers": ("chat-length rows", 3.0, "Trainer")}
    claims: list[Claim] = [
        tuning.speed_claim(f"{what}: tokens/s", found["puna"], found[side], least, peer)
        for side, (what, least, peer) in aims.items()
        if {"puna", side} <= found.keys()
    ]
    if {"puna", "qlora"} <= found.keys():
        held = {side: found[side]["grown_bytes"] for side in ("puna", "qlora")}
        claims.append(Claim("QLoRA: bytes held at most", held["qlora"], QLORA_SHARE,
                            held["puna"], "full tuning", at_most=True))  # fmt: skip
    harness.finish(report, claims, arguments.json)


if __name__ == "__main__":
    main()
