"""LoRA adapters as PEFT writes them, and PEFT's own computation with them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from puna.formats import save_model
from puna.model import Llama
from puna.tokenizer import Tokenizer

EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Peer:
    """The model in transformers, with adapters that PEFT makes, writes and applies.

    Args:
        folder: where the model and its adapters are written.
    """

    def __init__(self, folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
        self._folder = folder
        save_model(folder / "model", model, tokenizer)

    def write(self, name: str, seed: int, **settings: Any) -> Path:
        """A folder with a random adapter; ``settings`` are PEFT's."""
        fields = {"r": 4, "lora_alpha": 6, "target_modules": EVERYWHERE, **settings}
        changed = get_peft_model(self._base(), LoraConfig(**fields))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # PEFT starts with B of zeros, which would change nothing
            for key, parameter in changed.named_parameters():
                if ".lora_" in key:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        changed.save_pretrained(self._folder / name)
        return self._folder / name

    @torch.inference_mode()
    def greedy(
        self, adapter: Path | None, prompt: list[int], n: int
    ) -> tuple[list[int], torch.Tensor]:
        """The ``n`` most probable tokens after ``prompt``, and their log-probabilities (n,)."""
        model = self._base()
        changed = model if adapter is None else PeftModel.from_pretrained(model, adapter)
        ids = list(prompt)
        for _ in range(n):
            ids.append(int(changed.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        logprobs = changed(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        new = ids[len(prompt) :]
        return new, logprobs.gather(1, torch.tensor(new)[:, None])[:, 0]

    def _base(self) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(self._folder / "model").eval()
