"""Models built, adapted, looked at and averaged by four processes that each have a part."""

import json
from collections.abc import Callable
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch
from spread_runs import ROW, Runs, new_model, save_weights, trained
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puna.core.events import EventLog
from puna.data import PackedRows, TokenFile
from puna.formats import load_model, save_model
from puna.formats.average import average_models
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.parallel import Layout, here
from puna.parallel.adapters import merged_weights, save_spread_adapter
from puna.parallel.build import fresh_spread
from puna.parallel.folders import load_spread, save_spread
from puna.parallel.gradients import local
from puna.parallel.parallelize import as_it_is, parallelize
from puna.pretraining.curriculum import CurriculumRun, Texts
from puna.pretraining.needle import needle_row
from puna.pretraining.recipe import Curriculum
from puna.pretraining.spread_needle import spread_needle_accuracy
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.training.look import mean_loss
from puna.training.muon import Muon

TIED = {"tie_embeddings": True}
PP = {"pp": 2, "dp_shard": 2, "schedule": "zbv"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"dp_shard": 4},
    "tp with fsdp": {"tp": 2, "dp_shard": 2},
    "cp with fsdp": {"cp": 2, "dp_shard": 2},
    "zbv": PP,
}
FRESH = ("fsdp", "tp with fsdp", "zbv")
DEEP = {"dim": 64, "n_layers": 6, "ffn_dim": 128}  # much larger than its largest matrix
OF_TOKENIZER = {"vocab_size": 288}
ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"dp_shard": 4}, {}),
    "dora, hsdp": ({"dp_shard": 2}, {"dora": True, "rslora": True}),
    "lora, cp": ({"cp": 2, "dp_shard": 2}, {"targets": ["q_proj", "down_proj"]}),
    "lora on bf16": ({"dp_shard": 4}, {"base": "bf16"}),
}
MUON: Runs = {f"muon, {name}": (LAYOUTS[name], {"optimizer": "muon"}, {}) for name in FRESH}
WAY = {
    "phases": [{"name": "start", "steps": 2, "row_length": 32, "batch_rows": 8}],
    "long_context": {
        "rope": {"factor": 4, "original_context": 32},
        "stages": [{"row_length": 128, "batch_rows": 8, "steps": 2}],
        "gate": {
            "needles": 3, "rows": 5, "attempts": 1, "needle_accuracy": 0, "short_loss_tolerance": 9
        },
    },
    "anneal": {"steps": 4, "row_length": 128, "batch_rows": 8, "average": 2},
}  # fmt: skip
WAY_LOOP = {"steps": 8, "batch_rows": 8, "learning_rate": 1e-3, "precision": "fp32"}


def config_of(**changes: Any) -> LlamaConfig:
    return new_model(**changes).config


def lora_of(**changes: Any) -> LoraConfig:
    return LoraConfig.parse({"rank": 4} | changes, where="test")


def way_loop(layout: dict[str, Any]) -> LoopConfig:
    return LoopConfig.parse(WAY_LOOP | {"layout": layout, "log_every": 1}, where="test")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors with contents that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf.to_local() if isinstance(leaf, DTensor) else leaf)
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return made

    def _note(self, tensor: Tensor) -> None:
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())


def counted(folder: Path, name: str, build: Callable[[], Llama]) -> Llama:
    """What ``build`` makes; ``bytes-NAME-RANK.json`` has the most bytes alive, and those kept."""
    with LiveBytes() as live:
        model = build()
    kept = sum(local(parameter).nbytes for parameter in model.parameters())
    (folder / f"bytes-{name}-{here().rank}.json").write_text(json.dumps([live.most, kept]))
    return model


def built(folder: Path) -> None:
    """Fresh models and one of a folder, each made in pieces; some trained."""
    config = config_of(**DEEP, **TIED)
    for name in FRESH:
        layout = Layout.parse(LAYOUTS[name], where=name)
        build = partial(fresh_spread, config, layout, 1)
        model = counted(folder, f"fresh {name}", build)
        save_weights(folder, f"fresh {name}", model, as_it_is(model).mesh)
    counted(folder, "loaded", lambda: load_spread(folder / "deep", Layout(dp_shard=4))[0])
    started = fresh_spread(config_of(), Layout(dp_shard=4), 1)
    rows = PackedRows(TokenFile(folder / "tokens"), ROW)

    def looked(_step: int, model: Llama) -> None:
        mean_loss(model, rows, 5, 2)

    trained(folder, "looked at", ({"dp_shard": 4}, {}, {}), model=started, after_step=looked)


def adapted(folder: Path, name: str) -> None:
    """An adapter trained on a folder's model that no process has, saved and merged."""
    settings, changes = ADAPTERS[name]
    layout = Layout.parse(settings, where=name)
    model, tokenizer = load_spread(folder / "base", layout, lora=lora_of(**changes), seed=3)
    trained(folder, name, (settings, {}, {}), model=model)
    mesh = as_it_is(model).mesh
    save_spread_adapter(folder / f"{name} adapter", model, "base", mesh)
    weights, report = merged_weights(model, mesh)
    save_spread(folder / f"{name} merged", model, tokenizer, weights=weights)
    if mesh.is_first:
        figures = {e.product: (e.relative, e.of_change) for e in report.weights}
        (folder / f"{name} report.json").write_text(json.dumps(figures))


def adapted_alone(folder: Path, name: str) -> Llama:
    """The same by one process, its model whole."""
    model, _ = load_model(folder / "base")
    add_lora(model, lora_of(**ADAPTERS[name][1]), seed=3)
    return trained(folder, f"{name} alone", ({}, {}, {}), model=model)


def muon_steps(folder: Path) -> None:
    """Three steps of Muon on a matrix cut in rows, of gradients that all know."""
    mesh = here().of(Layout(dp_shard=4)).devices["shard"]
    weights, gradients = muon_case()
    spread = nn.Parameter(distribute_tensor(weights, mesh, [Shard(0)]))
    optimizer = Muon([spread], lr=0.02, weight_decay=0.1)
    for gradient in gradients:
        spread.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        optimizer.step()
    whole = spread.detach().full_tensor()  # type: ignore[attr-defined]
    if here().is_first:
        torch.save(whole, folder / "muon.pt")


def muon_case() -> tuple[Tensor, list[Tensor]]:
    """A matrix whose rows four processes cannot share evenly, and gradients."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 7, generator=generator), [
        torch.randn(10, 7, generator=generator) for _ in range(3)
    ]


def hay(folder: Path) -> list[int]:
    found: list[int] = TokenFile(folder / "tokens").tokens[:500].tolist()
    return found


def prophet(folder: Path, tokenizer: Tokenizer) -> None:
    """A model without attention that knows one needle's number: which token follows which.

    It is one whose digits are alike, for else the space between them would have several followers.
    """
    model, text = new_model(**OF_TOKENIZER), hay(folder)
    for seed in count():
        row, tail = needle_row(tokenizer, text, 64, 0.5, seed * 1000 + 2)
        follows = dict(pairwise(row[-tail - 1 :]))
        if all(follows[a] == b for a, b in pairwise(row[-tail - 1 :])):
            break
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
        for before, after in follows.items():
            model.head_weight()[after] += model.model.embed_tokens.weight[before]
    save_model(folder / "prophet", model, tokenizer)
    (folder / "seed.json").write_text(json.dumps(seed))


def seen(folder: Path, layout: dict[str, Any]) -> dict[str, float]:
    """Held-out loss of rows that the processes cannot share evenly, and needles found."""
    model, tokenizer = load_model(folder / "base")
    knowing, _ = load_model(folder / "prophet")
    for each in (model, knowing):
        parallelize(each, Layout.parse(layout, where="test"))
    rows = PackedRows(TokenFile(folder / "tokens"), ROW)
    seed = json.loads((folder / "seed.json").read_text())
    return {
        "loss": mean_loss(model, rows, 7, 2),
        "needles": spread_needle_accuracy(knowing, tokenizer, hay(folder), 64, 5, seed),
    }


def curriculum(folder: Path, name: str, layout: dict[str, Any]) -> None:
    """A curriculum with a gate and an anneal whose models are averaged."""
    loop, mesh = way_loop(layout), here()
    config = config_of(**OF_TOKENIZER)
    if loop.layout.only_replicas:
        model = Llama(config)
        model.init_weights(1)
    else:
        model = fresh_spread(config, loop.layout, 1)
    tokens = TokenFile(folder / "tokens")
    texts = Texts(tokens, ["a"] * len(tokens), TokenFile(folder / "tokens"))
    run = CurriculumRun(
        Curriculum.parse(WAY, where="test"), loop, texts, 0, folder / name, EventLog(), name
    )
    run.run(model, Tokenizer.from_folder(folder / "base"))
    if mesh.is_first:
        average_models(run.averaged(), folder / f"{name} averaged")
        (folder / f"{name}.json").write_text(json.dumps(run.facts()))
    mesh.wait()


def all_builds(folder: Path) -> None:
    """All of it, by processes that have come up once."""
    built(folder)
    for name in ADAPTERS:
        adapted(folder, name)
    muon_steps(folder)
    for name, run in MUON.items():
        trained(folder, name, run)
    found = {name: seen(folder, layout) for name, layout in LAYOUTS.items()}
    if here().is_first:
        (folder / "seen.json").write_text(json.dumps(found))
    curriculum(folder, "way of four", PP | {"microbatches": 4})
