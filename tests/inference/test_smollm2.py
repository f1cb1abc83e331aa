"""The embedded real model against transformers, greedy, in fp32."""

import torch
from transformers import AutoModelForCausalLM

from puna.formats import load_model
from puna.formats.resolve import smollm2_folder
from puna.inference import Sampling, generate
from puna.tokenizer import Message

QUESTIONS = [
    "What is gravity?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "Name three countries in South America.",
    "What is 12 times 12?",
    "Write a Python function that reverses a string.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Translate 'good morning' into French.",
]


def test_greedy_text_equals_the_peers_for_64_tokens_on_ten_prompts() -> None:
    model, tokenizer = load_model("smollm2")
    peer = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    prompts = [
        tokenizer.chat.encode(tokenizer, [Message("user", q)], add_generation_prompt=True).ids
        for q in QUESTIONS
    ]
    ours = generate(model, prompts, Sampling(max_new_tokens=64), tokenizer.stop_ids)
    for prompt, found in zip(prompts, ours, strict=True):
        row = torch.tensor([prompt])
        written = peer.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=sorted(tokenizer.stop_ids),
            pad_token_id=tokenizer.pad_id,
        )[0, len(prompt) :].tolist()
        if written[-1] in tokenizer.stop_ids:
            written.pop()
        assert found.ids == written
