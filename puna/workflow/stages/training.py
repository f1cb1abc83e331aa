"""What stages that train share: the model they start from, the loop, what they leave.

Each leaves ``model/``, a Hugging Face folder, and keeps checkpoints below `SCRATCH` until it ends.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from puna.core.config import Config
from puna.core.devices import default_device
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.core.files import sha256_file, sha256_folder
from puna.data.records import missing
from puna.formats import load_model, save_model
from puna.formats.peft import save_adapter
from puna.formats.resolve import model_folder
from puna.model import Llama, LoraConfig, add_lora, merge
from puna.model.lora import lora_layers
from puna.model.merge import MergeReport
from puna.model.nf4 import NF4Linear
from puna.parallel import Layout, here
from puna.parallel.adapters import has_adapter, merged_weights, save_spread_adapter
from puna.parallel.folders import load_spread, save_spread
from puna.parallel.parallelize import Parallel, laid_out
from puna.safety.gate.verdict import CARD, GATE
from puna.tokenizer import FORMATS, Tokenizer
from puna.training import LoopConfig, train
from puna.training.checkpoint import Progress
from puna.training.loop import AfterStep, Objective, Source
from puna.workflow.stage import SCRATCH, Artifact
from puna.workflow.stages.corpus import Exercises

ADAPTER = "adapter"  # below a stage's folder: what LoRA trained, as PEFT writes it
REPLICAS = Layout()
MODEL = "model"  # below a stage's folder: the weights with their tokenizer
Save = Callable[[Path, Any, Tokenizer], None]
ChatFormatName = Literal["auto", "llama3", "llama3.1", "llama3.2", "chatml"]


class FromModel(Config):
    """What all stages that start from a model have in common."""

    leaves_policy: ClassVar[bool] = True
    """Whether later stages go on from the model it leaves."""
    usual_base: ClassVar[str] = ""
    """Stage whose model it takes, where the recipe has it, in place of the stage before."""

    together: ClassVar[bool] = False
    """Whether several processes take part; else the first one does the work, the others wait."""

    base: str = ""
    """Model to start from: an earlier stage's name, or a model as commands take it (``smollm2``, a
    folder, a repo id); empty takes what the stage before left."""
    chat_format: ChatFormatName = "auto"
    """How chats are written; ``auto`` takes what the model's folder says."""

    def reads(self) -> Sequence[Path]:
        """Files and folders of the user's that shape the outcome."""
        return ()

    def needs(self) -> Sequence[str]:
        """Other stages whose outputs it reads, where the recipe has them."""
        return ()

    def circumstances(self) -> Sequence[str]:
        """Digests of what else shapes the outcome, e.g. texts that may be missing here."""
        return ()


@dataclass(frozen=True)
class Given:
    """What a stage that starts from a model gets beside its settings."""

    base: str | Path
    """The model to start from, as `load_model` takes it."""
    seed: int
    """The recipe's."""
    drawn: Exercises
    """What the generators draw from."""
    events: EventLog
    """Where progress goes."""
    earlier: Mapping[str, Artifact]
    """Stages of the recipe that are done, by name."""

    @property
    def data(self) -> Path | None:
        """Folder of the corpus; None in a recipe without one."""
        return self.earlier["data"].folder if "data" in self.earlier else None


def resolve_base(
    config: FromModel, policy: str, earlier: Mapping[str, Artifact]
) -> tuple[str | Path, str]:
    """The model a stage starts from, and a digest of it.

    Args:
        policy: the stage before that left a model to go on from; empty for none.
        earlier: stages that are done, by name.
    """
    usual = config.usual_base if config.usual_base in earlier else policy
    name = config.base or usual
    if name in earlier:
        return earlier[name].folder / MODEL, earlier[name].digest
    path = Path(name)
    return name, digest_of(path) if path.exists() else name


def check_whole(loop: LoopConfig, why: str) -> None:
    """Raise `UsageError` where the layout spreads the model of a stage that cannot have it so."""
    if not loop.layout.only_replicas:
        raise UsageError(f"{why}: leave out loop.layout, or give it dp_replicate only")


def digest_of(path: Path) -> str:
    """Hash of a file or folder; raises `UsageError` where there is none.

    What a gate has left in a model's folder does not count: the model is the same.
    """
    if not path.exists():
        raise missing(path)
    return sha256_folder(path, without=(GATE, CARD)) if path.is_dir() else sha256_file(path)


def open_base(
    config: FromModel,
    given: Given,
    lora: LoraConfig | None = None,
    layout: Layout = REPLICAS,
) -> tuple[Llama, Tokenizer]:
    """The model a stage starts from, with the chat format the stage asks for.

    It is on the device, but for weights that `adapt` makes smaller first: a GPU that holds those
    may be too small for these. Where ``layout`` spreads it each process reads its part of it, and
    it has its adapter already; only a GGUF file is read whole by each.
    """
    folder = None if layout.only_replicas else model_folder(given.base)
    if folder is not None:
        model, tokenizer = load_spread(folder, layout, lora=lora, seed=given.seed)
    else:
        smaller = lora is not None and lora.base != "kept"
        model, tokenizer = load_model(given.base, device="cpu" if smaller else default_device())
    if config.chat_format != "auto":
        tokenizer = tokenizer.with_chat(FORMATS[config.chat_format])
    return model, tokenizer


def sampled_files(given: Given, name: str, stage: str = "sample") -> list[Path]:
    """The file of a stage with this name; none, and a warning, where it holds nothing."""
    path = given.earlier[stage].folder / name
    if path.stat().st_size:
        return [path]
    given.events.emit("warning", text=f"{path.parent.name}/{name} is empty: no answer was kept")
    return []


def adapt(model: Llama, lora: LoraConfig | None, given: Given) -> None:
    """Put an adapter on the model where the stage asks for one, and say how large it is."""
    if lora is None:
        return
    if laid_out(model) is None:
        add_lora(model, lora, seed=given.seed)
        model.to(default_device())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    given.events.emit("note", text=f"adapter: {trained:,} trained parameters")


def train_and_save(
    model: Llama,
    tokenizer: Tokenizer,
    objective: Objective,
    source: Source,
    loop: LoopConfig,
    row_length: int,
    events: EventLog,
    folder: Path,
    *,
    after_step: AfterStep | None = None,
    base: str | Path = "",
    save: Save | None = None,
    trained: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train and leave ``model/``; of a model with an adapter also ``adapter/``, then merged.

    Of several processes, the first one's ``folder`` has the checkpoints and gets the model.

    Args:
        row_length: tokens a token may attend to, for the FLOP count.
        after_step: see `train`.
        base: what an adapter changes, to keep it; else it is merged only.
        save: writes the folder ``model/`` in place of `save_model`, by the first process.
        trained: called after the last step, the adapter not merged yet.
    """
    stage, mesh = folder.name, here()
    checkpoints = mesh.on_first(lambda: folder / SCRATCH / "checkpoints")
    progress = train(
        model,
        objective,
        source,
        loop,
        checkpoints,
        events,
        stage=stage,
        attended=row_length // 2,
        after_step=after_step,
    )
    trained()
    return leave_model(model, tokenizer, progress, events, folder, base=base, save=save)


def leave_model(
    model: Llama,
    tokenizer: Tokenizer,
    progress: Progress,
    events: EventLog,
    folder: Path,
    *,
    base: str | Path = "",
    save: Save | None = None,
) -> dict[str, Any]:
    """Write what `train_and_save` leaves, of a model that is trained; returns figures."""
    spread, merged = laid_out(model), dict[str, Any]()
    if spread is not None and save is None:
        merged = _leave_spread(model, tokenizer, spread, folder, str(base), events)
    else:
        if has_adapter(model):
            merged = _merge_adapter(model, folder, str(base), events)
        if here().is_first:
            (save or save_model)(folder / MODEL, model, tokenizer)
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_seconds": round(progress.seconds, 2),
        "tokens_per_s": round(progress.tokens / progress.seconds, 1),
        "parameters": model.config.n_params(),
        **merged,
    }


def _leave_spread(
    model: Llama, tokenizer: Tokenizer, spread: Parallel, folder: Path, base: str, events: EventLog
) -> dict[str, Any]:
    """Write a spread model in pieces, its adapter beside it and added to what is written."""
    spread.drop_gathered()
    if not has_adapter(model):
        save_spread(folder / MODEL, model, tokenizer)
        return {}
    if base:
        save_spread_adapter(folder / ADAPTER, model, base, spread.mesh)
    weights, report = merged_weights(model, spread.mesh)
    save_spread(folder / MODEL, model, tokenizer, weights=weights)
    return _merge_figures(report, events)


def _merge_adapter(model: Llama, folder: Path, base: str, events: EventLog) -> dict[str, Any]:
    """Keep the adapter in a folder of its own, where its base is named; add it to the weights.

    What was held in fewer bits is merged on CPU, and stays there: whole, it may not fit the device.
    """
    if base:
        save_adapter(folder / ADAPTER, model, base)
    held = next(lora_layers(model))[1].base
    if isinstance(held, NF4Linear) or held.weight.dtype != torch.float32:
        model.to("cpu")
    return _merge_figures(merge(model), events)


def _merge_figures(report: MergeReport, events: EventLog) -> dict[str, Any]:
    events.emit("note", text=str(report))
    worst = report.worst
    return {"merge_error": worst.relative, "merge_error_of_change": worst.of_change}
