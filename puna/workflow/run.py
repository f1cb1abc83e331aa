"""A recipe carried out: stage after stage, into a run folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from puna.core.config import Config, load_yaml
from puna.core.devices import default_device, describe_machine, fast_bf16
from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.core.files import sha256_value, write_text
from puna.core.hold import HELD, held
from puna.formats import load_model
from puna.model import Llama
from puna.parallel import here
from puna.tokenizer import Tokenizer, today, written_on
from puna.training.config import CIRCUMSTANCES
from puna.workflow.progress import TerminalProgress
from puna.workflow.recipe import Recipe
from puna.workflow.report import write_report
from puna.workflow.rounds import carry_out_rounds
from puna.workflow.stage import Artifact, run_stage
from puna.workflow.stages import gate
from puna.workflow.stages.corpus import Exercises, exercises, run_data, run_tokenizer
from puna.workflow.stages.cpt import run_cpt
from puna.workflow.stages.distill import run_distill
from puna.workflow.stages.dpo import run_dpo
from puna.workflow.stages.evaluate import run_baselines, run_evaluate
from puna.workflow.stages.gate import GateStage, run_gate
from puna.workflow.stages.online import run_grpo, run_ppo
from puna.workflow.stages.pretrain import fresh_model, run_pretrain
from puna.workflow.stages.qat import run_qat
from puna.workflow.stages.refusal import run_refusal
from puna.workflow.stages.reward import run_reward
from puna.workflow.stages.rounds import RoundsStage
from puna.workflow.stages.safety import run_safety
from puna.workflow.stages.sample import run_sample
from puna.workflow.stages.sft import run_sft
from puna.workflow.stages.training import MODEL, FromModel, Given, digest_of, resolve_base
from puna.workflow.summary import write_summary
from puna.workflow.track import build_tracker

Work = Callable[[Path], dict[str, Any]]
EVENTS, RECIPE = "events.jsonl", "recipe.yaml"
BASELINES, EVALUATE = "baselines", "evaluate"
_NO_BF16 = "this processor has no bf16 products: training is in fp32, several times slower"
# What carries out each stage that starts from a model; `Stages` says in which order.
_RUNS: dict[str, Callable[[Any, Given, Path], dict[str, Any]]] = {
    "cpt": run_cpt,
    "safety": run_safety,
    "sft": run_sft,
    "refusal": run_refusal,
    "reward": run_reward,
    "sample": run_sample,
    "dpo": run_dpo,
    "ppo": run_ppo,
    "grpo": run_grpo,
    "distill": run_distill,
    "qat": run_qat,
    "gate": run_gate,
}


@dataclass
class Run:
    """A recipe on its way: what is finished, in order."""

    recipe: Recipe
    folder: Path
    events: EventLog
    drawn: Exercises
    done: dict[str, Artifact] = field(default_factory=dict)
    policy: str = ""
    """The stage that left the model to go on from; empty when there is none yet."""

    def stage(
        self,
        name: str,
        config: Config,
        inputs: Sequence[str],
        work: Work,
        *,
        together: bool = False,
    ) -> Artifact:
        """Run one stage with the recipe's seed and kinds as part of its config.

        ``together`` says whether all processes take part, see `run_stage`.
        """
        known = len(self.drawn.countries)
        shared = {"seed": self.recipe.seed, "kinds": self.recipe.kinds, "countries": known}
        settings = {**shared, **config.model_dump(mode="json")}
        if isinstance(settings.get("loop"), dict):
            settings["loop"] = {k: v for k, v in settings["loop"].items() if k not in CIRCUMSTANCES}
        self.done[name] = run_stage(
            self.folder, name, settings, inputs, work, self.events, together=together
        )
        return self.done[name]


def run_recipe(recipe: Recipe, root: Path, console: Console) -> dict[str, Any]:
    """Carry out a recipe in ``root / recipe.name``; returns the summary.

    Finished stages are skipped, a stage that was killed goes on where it was. Leaves
    ``recipe.yaml`` (resolved), ``events.jsonl``, a folder for each stage, ``summary.json`` and
    ``report.html``. Of several processes all come here; the first one writes and reports.
    """
    folder, mesh = root / recipe.name, here()
    with ExitStack() as holding:
        date = mesh.on_first(partial(_prepare, folder, recipe, holding))
        recipe = recipe.model_copy(update={"date": date})
        reported = _reported(recipe, folder, console) if mesh.is_first else nullcontext(EventLog())
        with written_on(date), reported as events:
            work = recipe.stages.work()
            events.emit("run_start", name=recipe.name, machine=describe_machine(), work=work)
            if not fast_bf16(default_device().type):
                events.emit("note", text=_NO_BF16)
            run = Run(recipe, folder, events, exercises(recipe.kinds))
            _stages(run)
            summary = mesh.on_first(partial(_conclude, run))
            events.emit("run_end", name=recipe.name)
            return summary


def _prepare(folder: Path, recipe: Recipe, holding: ExitStack) -> str:
    """Make the run's folder, hold it, and put the recipe in it; returns the run's date."""
    made = (folder / EVENTS).exists() or (folder / HELD).exists()
    if folder.exists() and any(folder.iterdir()) and not made:
        raise UsageError(f"{folder} was not made by puna: choose another name or --runs")
    holding.enter_context(held(folder))
    kept = folder / RECIPE
    begun = load_yaml(kept).get("date") if kept.exists() else None
    if begun and recipe.date not in ("", begun):
        raise UsageError(f"{folder} was begun with the date {begun}: give the run another name")
    date: str = begun or recipe.date or today()
    write_text(kept, _as_yaml(recipe.model_copy(update={"date": date})))
    return date


@contextmanager
def _reported(recipe: Recipe, folder: Path, console: Console) -> Iterator[EventLog]:
    """Events that go to their file, the terminal and the tracker."""
    progress = TerminalProgress(console)
    settings = recipe.model_dump(mode="json")
    tracker = build_tracker(recipe.track, recipe.name, settings, folder)
    readers = (progress, tracker) if tracker else (progress,)
    events = EventLog(folder / EVENTS, readers)
    try:
        yield events
    except PunaError as error:
        events.emit("run_failed", error=str(error))
        raise
    finally:
        progress.close()
        if tracker:
            tracker.close()
        events.close()


def _conclude(run: Run) -> dict[str, Any]:
    summary = write_summary(run.folder, run.recipe, run.done, run.policy)
    write_report(run.folder, summary)
    return summary


def _as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _stages(run: Run) -> None:
    stages = run.recipe.stages
    if stages.data:
        _corpus(run)
    if stages.pretrain:
        _pretrain(run)
    for name, config in stages.tuning():
        if isinstance(config, RoundsStage):
            _judge_base(run, *resolve_base(config, run.policy, run.done))
            carry_out_rounds(run, config, _tune, _judge_left)
        else:
            _tune(run, name, config)


def _corpus(run: Run) -> None:
    stages, seed = run.recipe.stages, run.recipe.seed
    assert stages.data is not None
    files = [c.path for c in stages.data.corpus.sources.values() if c.path is not None]
    inputs = [digest_of(path) for path in files]
    data = run.stage(
        "data", stages.data, inputs, partial(run_data, stages.data, seed, run.drawn, run.events)
    )
    if not stages.tokenizer:
        return
    work = partial(run_tokenizer, stages.tokenizer, data.folder, run.events)
    tokenizer = run.stage("tokenizer", stages.tokenizer, [data.digest], work)
    if stages.evaluate:
        folders = (data.folder, tokenizer.folder / "tokenizer")
        inputs = [data.digest, tokenizer.digest]
        run.stage(BASELINES, Config(), inputs, partial(run_baselines, *folders))


def _pretrain(run: Run) -> None:
    config, seed = run.recipe.stages.pretrain, run.recipe.seed
    assert config is not None
    data, tokenizer = run.done["data"], run.done["tokenizer"]
    folder = tokenizer.folder / "tokenizer"
    shape = sha256_value([config.model.model_dump(mode="json"), tokenizer.digest])
    _judge(run, "untrained", shape, partial(fresh_model, config, seed, folder))
    work = partial(run_pretrain, config, seed, data.folder, folder, run.events)
    run.stage("pretrain", config, [data.digest, tokenizer.digest], work, together=True)
    _judge_policy(run, "pretrain")


def _tune(run: Run, name: str, config: FromModel) -> None:
    """Carry out a stage that starts from a model, then judge the policy it leaves."""
    base, known = resolve_base(config, run.policy, run.done)
    files = config.reads()
    for path in (*files, *([Path(base)] if isinstance(base, str) else [])):
        if path.resolve().is_relative_to(run.folder.resolve()):
            raise UsageError(
                f"{path} lies in {run.folder}, which this run replaces: give the run another name"
            )
    _judge_base(run, base, known)
    read = [run.done[stage].digest for stage in config.needs() if stage in run.done]
    inputs = [known, *config.circumstances(), *map(digest_of, files), *read]
    given = Given(base, run.recipe.seed, run.drawn, run.events, run.done)
    method = name.partition("-")[0]  # of several settings in a round: dpo-1, dpo-2
    work = partial(_RUNS[method], config, given)
    run.stage(name, config, inputs, work, together=config.together)
    if isinstance(config, GateStage):  # also of a stage that was skipped: it may be gone
        here().on_first(partial(gate.leave, run.done[name].folder, base))
    if config.leaves_policy:
        _judge_policy(run, name)


def _judge_policy(run: Run, name: str) -> None:
    """Judge the model a stage left; the next goes on from it."""
    run.policy = name
    _judge_left(run, name, name)


def _judge_left(run: Run, stage: str, name: str) -> None:
    """Judge the model a stage left, under a name."""
    left = run.done[stage]
    load = partial(load_model, left.folder / MODEL, device=default_device())
    _judge(run, name, left.digest, load)


def _judge_base(run: Run, base: str | Path, known: str) -> None:
    """Judge a model from elsewhere that the first stage starts from."""
    if isinstance(base, str) and f"{EVALUATE}-base" not in run.done:
        _judge(run, "base", known, partial(load_model, base, device=default_device()))


def _judge(run: Run, name: str, digest: str, load: Callable[[], tuple[Llama, Tokenizer]]) -> None:
    """Evaluate a model where the recipe asks for it."""
    config = run.recipe.stages.evaluate
    if config is None:
        return
    data = run.done.get("data")
    folder = data.folder if data else None
    work = partial(run_evaluate, config, run.recipe.seed, load, folder, run.drawn, run.events)
    run.stage(f"{EVALUATE}-{name}", config, [digest, *([data.digest] if data else [])], work)
