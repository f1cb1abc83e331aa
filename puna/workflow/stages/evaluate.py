"""The stage that judges a model, run before the first training stage and after each."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from puna.core.config import Config
from puna.core.devices import fast_dtype
from puna.core.events import EventLog
from puna.core.files import write_json
from puna.data import read_documents
from puna.data.generators import evaluation_questions, generate_pairs
from puna.data.generators.kinds import GEOGRAPHY_KINDS
from puna.evaluation import (
    bits_per_byte,
    exact_match,
    measure_baselines,
    model_answers,
    pair_logprobs,
    preference_accuracy,
)
from puna.inference import Engine, Request, Sampling, generate
from puna.model import Llama
from puna.tokenizer import Message, Tokenizer
from puna.workflow.stages.corpus import SEARCHED_PER_KIND, TRAIN, VALIDATION, Exercises


class EvaluateStage(Config):
    """What is measured before and after each stage."""

    questions_per_kind: int = Field(default=40, ge=1, le=SEARCHED_PER_KIND)
    """Held-out generated questions of each kind; these are looked for in the training text."""
    pairs: int = Field(default=300, ge=2)
    """Held-out preference pairs."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer."""
    sample_prompts: tuple[str, ...] = ()
    """Beginnings for the model to continue, shown in the report."""
    sample_questions: tuple[str, ...] = ()
    """Questions shown with their answers in the report."""
    sampling: Sampling = Sampling(max_new_tokens=80, temperature=0.7, top_p=0.9)
    """How the samples are drawn; the scored answers are greedy."""


def run_baselines(data: Path, tokenizer_folder: Path, folder: Path) -> dict[str, Any]:
    """Bits per byte of plain methods on the validation text."""
    train = [document.text for document in read_documents(data / TRAIN)]
    validation = [document.text for document in read_documents(data / VALIDATION)]
    found = asdict(measure_baselines(train, validation, Tokenizer.from_folder(tokenizer_folder)))
    write_json(folder / "baselines.json", found)
    return found


def run_evaluate(
    config: EvaluateStage,
    seed: int,
    load: Callable[[], tuple[Llama, Tokenizer]],
    data: Path | None,
    drawn: Exercises,
    events: EventLog,
    folder: Path,
) -> dict[str, Any]:
    """Judge one model: likelihood, held-out questions, preferences; and let it talk."""
    model, tokenizer = load()
    model.compute_dtype = fast_dtype(model.device.type)  # as most are trained and served
    questions = evaluation_questions(seed, config.questions_per_kind, drawn.countries, drawn.kinds)
    engine = Engine(model, tokenizer)
    answers = model_answers(engine, max_new_tokens=config.max_new_tokens)
    facts_asked = [q for q in questions if q.kind in GEOGRAPHY_KINDS]
    match = exact_match(answers, [q for q in questions if q.kind not in GEOGRAPHY_KINDS])
    known = exact_match(answers, facts_asked) if facts_asked else None
    pairs = list(generate_pairs(seed, config.pairs, drawn.countries, drawn.kinds, held_out=True))
    preferences = preference_accuracy(pair_logprobs(model, tokenizer, pairs))
    facts: dict[str, Any] = {
        "exact_match": match.accuracy,
        "facts": known.by_kind if known else {},
        "exact_match_by_kind": match.by_kind,
        "questions": match.n,
        "stop_rate": match.stopped,
        "in_format": match.in_format,
        "full_sentences": match.full_sentences,
        "preference_accuracy": preferences.accuracy,
        "preference_accuracy_by_kind": preferences.accuracy_by_kind,
        "pairs": preferences.n,
    }
    if data is not None:
        texts = [document.text for document in read_documents(data / VALIDATION)]
        facts["bits_per_byte"] = bits_per_byte(model, tokenizer, texts).bits_per_byte
    write_json(
        folder / "misses.json",
        [asdict(m) for m in (*match.misses, *(known.misses if known else ()))],
    )
    write_json(folder / "samples.json", _samples(config, engine))
    events.emit("evaluation", stage=folder.name, **facts)
    return facts


def _samples(config: EvaluateStage, engine: Engine) -> dict[str, Any]:
    """Continuations of the beginnings, drawn; answers to the questions, greedy."""
    tokenizer = engine.tokenizer
    written = generate(
        engine,
        [
            Request(tokenizer.encode(text, bos=True), config.sampling, tokenizer.stop_ids)
            for text in config.sample_prompts
        ],
    )
    answers = model_answers(engine, max_new_tokens=config.max_new_tokens)
    replies = answers([[Message("user", question)] for question in config.sample_questions])
    return {
        "continuations": [
            {"prompt": prompt, "text": generation.text}
            for prompt, generation in zip(config.sample_prompts, written, strict=True)
        ],
        "dialogues": [
            {"question": question, "answer": reply.text, "stopped": reply.stopped}
            for question, reply in zip(config.sample_questions, replies, strict=True)
        ],
    }
