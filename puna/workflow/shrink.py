"""A large recipe made tiny: the same stages and the same kind of model, in seconds on any machine.

It shows that a recipe runs before a large machine is taken for it. Published models become fresh
ones of two layers with their ratio of query to key heads, scaling of RoPE and tying; every stage
takes two steps; a file that is missing is replaced by generated data.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from puna.core.files import sha256_value, write_text
from puna.core.random import stable_seed
from puna.data.generators import (
    GeneratedText,
    evaluation_questions,
    generate_chats,
    generate_documents,
    generate_pairs,
)
from puna.data.generators.kinds import WEIGHTS
from puna.formats import save_model
from puna.model import Llama, LlamaConfig
from puna.model.lora import of_any_block
from puna.tokenizer import Tokenizer
from puna.workflow.memory import shape_of
from puna.workflow.recipe import Recipe
from puna.workflow.stages.pretrain import ModelShape

INPUTS = "tiny-inputs"  # below the folder of runs: models and data that all tiny runs share
_VOCAB_SIZE, _N_SPECIAL, _HEAD_DIM, _KV_HEADS, _ROWS = 512, 16, 16, 2, 40
_MOST = {
    # setting, whatever stage it is in: its largest value
    "steps": 2,
    "compile": False,
    "batch_rows": 2,
    "micro_rows": 1,
    "warmup_steps": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "row_length": 512,
    "rank": 4,
    "prompts": 2,
    "answers": 2,
    "count": 2,
    "max_new_tokens": 8,
    "validations": 1,
    "samples": 1,
    "generated_chats": _ROWS,
    "generated_pairs": _ROWS,
    "generated_prompts": 4,
    "questions_per_kind": 1,
    "pairs": 2,
    "harmful": 8,
    "conversations": 2,
    "limit": 2,
    "exercises": 300,
    "geography": _ROWS,
    "stories": 300,
    "vocab_size": _VOCAB_SIZE,
    "n_special": _N_SPECIAL,
}
_SOURCE_CHARS = 20_000
_SHORTEST_ROW = 8
_HELD_OUT = 0.1  # of few documents
_CURRICULUM = {"attempts": 1, "needles": 2, "rows": 4, "average": 2, "steps": 2, "batch_rows": 2}


def shrunken(recipe: Recipe, root: Path) -> Recipe:
    """``recipe`` made tiny, as ``NAME-tiny``; what it starts from is written to ``root``."""
    values = recipe.model_dump(mode="json")
    stages = {name: stage for name, stage in values["stages"].items() if stage is not None}
    shrink = _Shrink(root / INPUTS, set(stages))
    tiny = {name: shrink.node(name, stage) for name, stage in stages.items()}
    changed = {"name": f"{recipe.name}-tiny", "stages": tiny}
    return Recipe.parse(values | changed, where=f"{recipe.name}, shrunken")


class _Shrink:
    """Walks through a recipe's settings.

    Args:
        folder: of the models and data it makes.
        stages: names that stand for what a stage leaves.
    """

    def __init__(self, folder: Path, stages: set[str]) -> None:
        self.folder, self.stages = folder, stages

    def node(self, name: str, node: Mapping[str, Any]) -> dict[str, Any]:
        """The settings below ``name``, made tiny."""
        tiny = {key: self._value(name, key, value) for key, value in node.items()}
        if node.get("optimizer_in_backward"):
            tiny["micro_rows"] = 0
        if name == "model":
            tiny |= _tiny_model_settings(tiny)
        if tiny.get("curriculum"):  # each of its segments ends with a checkpoint
            tiny["loop"]["checkpoint_every"] = _CURRICULUM["steps"]
        return tiny

    def _value(self, name: str, key: str, value: Any) -> Any:
        if key == "sources":
            return {each: self._source(each, source) for each, source in value.items()}
        if key == "curriculum" and value is not None:
            return _tiny_curriculum(value, _MOST["row_length"] / _longest_row(value))
        if key == "layout":
            return {}  # of one process
        if isinstance(value, dict):
            return self.node(key, value)
        if key in ("preferences", "dpo"):  # of rounds: batches, and settings
            return [self.node(key, each) for each in value[: _MOST["count"]]]
        if isinstance(value, int) and key in _MOST:
            return min(value, _MOST[key])
        if name == "lora" and key == "targets":  # the numbers of layers that a tiny model lacks
            return [of_any_block(target) for target in value]
        if key in ("base", "teacher", "sampler") and value and name != "lora":
            return value if value in self.stages else self._model(value)
        if key in ("files", "prompts") and isinstance(value, list):
            rows = _pairs if name in _PAIRED else _chats
            return [self._file(each, _questions if key == "prompts" else rows) for each in value]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [self.node(key, each) for each in value]
        if key == "validation_fraction" and value:
            return max(value, _HELD_OUT)
        if key == "too_long":
            return "drop"
        return "auto" if key == "chat_format" and value == "chatml" else value

    def _source(self, name: str, source: Mapping[str, Any]) -> dict[str, Any]:
        """Some characters of a source; of a file that is missing, generated documents."""
        path = source.get("path")
        if path is not None and not Path(path).exists():
            made = self.folder / f"{name}.jsonl"
            if not made.exists():
                seed, texts = stable_seed(name), GeneratedText(exercises=_ROWS, stories=100)
                documents = generate_documents(seed, texts, (), WEIGHTS)
                rows = (json.dumps({"text": document.text}) + "\n" for document in documents)
                write_text(made, "".join(rows))
            path = str(made)
        return {**source, "path": path, "max_chars": _SOURCE_CHARS}

    def _file(self, given: Any, rows: Callable[[], Iterator[dict[str, Any]]]) -> Any:
        """The file if it is there; else one of generated rows."""
        path = Path(given["path"] if isinstance(given, dict) else given)
        if path.exists():
            return given
        made = self.folder / f"{rows.__name__.strip('_')}.jsonl"
        if not made.exists():
            write_text(made, "".join(json.dumps(row) + "\n" for row in rows()))
        return given | {"path": str(made), "form": "auto"} if isinstance(given, dict) else str(made)

    def _model(self, name: str) -> str:
        """The folder of a tiny model of the same family, with fresh weights."""
        config = tiny_shape(shape_of(name))
        made = self.folder / f"model-{sha256_value(config.model_dump(mode='json'))[:8]}"
        if not made.exists():
            texts = (m.content for chat in generate_chats(0, _ROWS, ()) for m in chat.messages)
            tokenizer = Tokenizer.train(texts, _VOCAB_SIZE, n_special=_N_SPECIAL)
            model = Llama(config.model_copy(update={"vocab_size": tokenizer.vocab_size}))
            model.init_weights(0)
            save_model(made, model, tokenizer)
        return str(made)


def tiny_shape(config: LlamaConfig, n_kv_heads: int = _KV_HEADS) -> LlamaConfig:
    """Two layers with the ratio of heads, the RoPE and the tying of ``config``."""
    n_heads = n_kv_heads * config.n_heads // config.n_kv_heads
    dim = n_heads * _HEAD_DIM  # a multiple of 32, as groups of 4-bit weights need
    small = {"dim": dim, "n_layers": 2, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    small |= {"ffn_dim": 2 * dim, "head_dim": _HEAD_DIM, "vocab_size": _VOCAB_SIZE}
    return LlamaConfig.parse(config.model_dump() | small, where="tiny model")


def _tiny_model_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe's ``stages.pretrain.model``: a published size becomes a shape."""
    config = tiny_shape(ModelShape.parse(model, where="model").build(_VOCAB_SIZE), n_kv_heads=1)
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "tie_embeddings")
    return {"size": ""} | {name: getattr(config, name) for name in names}


def _longest_row(curriculum: Mapping[str, Any]) -> int:
    found = (
        value if key == "row_length" else _longest_row(value)
        for key, value in _items(curriculum)
        if key == "row_length" or isinstance(value, dict | list)
    )
    return max(found, default=0)


def _items(node: Any) -> Iterator[tuple[Any, Any]]:
    yield from node.items() if isinstance(node, dict) else enumerate(node)


def _tiny_curriculum(node: Any, scale: float) -> Any:
    """Few steps of few rows, all lengths shorter by one factor, gates that stop nothing."""
    if isinstance(node, list):
        return [_tiny_curriculum(each, scale) for each in node]
    if not isinstance(node, dict):
        return node
    tiny = {key: _tiny_curriculum(value, scale) for key, value in node.items()}
    for key, most in _CURRICULUM.items():
        if isinstance(tiny.get(key), int):
            tiny[key] = min(tiny[key], most)
    for key in ("row_length", "original_context"):
        if key in tiny:
            tiny[key] = max(_SHORTEST_ROW, round(tiny[key] * scale))
    if "micro_rows" in tiny:
        tiny["micro_rows"] = min(tiny["micro_rows"], 1)
    if "give_up" in tiny:
        tiny["give_up"] = False
    return tiny


def _chats() -> Iterator[dict[str, Any]]:
    for chat in generate_chats(0, _ROWS, ()):
        yield {"messages": [{"role": m.role, "content": m.content} for m in chat.messages]}


def _pairs() -> Iterator[dict[str, Any]]:
    for pair in generate_pairs(0, _ROWS, (), held_out=False):
        question = pair.prompt[-1].content
        yield {"prompt": question, "chosen": pair.chosen, "rejected": pair.rejected}


def _questions() -> Iterator[dict[str, Any]]:
    for question in evaluation_questions(0, 1, ()):
        if question.check == "number":
            yield {"question": question.prompt, "answer": question.answer}


_PAIRED = ("dpo", "reward", "preferences")  # stages whose files hold preferences
