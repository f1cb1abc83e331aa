"""Rejection sampling: many answers to each prompt, of which the best is learned from.

"The Llama 3 Herd of Models" section 4.2.2: K answers, typically 10 to 30, from the newest model,
the best by the reward model becomes a row for SFT. The best and the worst are a preference pair.
What is sampled is written as it comes, so a run that was stopped goes on where it was.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from puna.alignment.rollouts import Answer, Scorer, encode_task, sample_answers
from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.core.files import explain_os_errors, sha256_value, write_json, write_text
from puna.core.random import stable_seed
from puna.inference import Engine, Sampling
from puna.tokenizer import Message

SCORED, SFT_ROWS, PAIRS = "scored.jsonl", "sft.jsonl", "pairs.jsonl"
_SETTINGS = "settings.json"


class RejectionConfig(Config):
    """How answers are sampled and which are kept."""

    answers: int = Field(default=16, ge=2, le=1024)
    """Answers to each prompt."""
    prompts_at_once: int = Field(default=16, ge=1)
    """Prompts answered together; what is written grows by as many."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens after which an answer is cut off; such an answer is never the best."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the fewest tokens whose probabilities reach this sum."""
    seed: int = 0
    """Of sampling: the same seed gives the same answers, however often the run was stopped."""
    least_score: float | None = None
    """Best answers below it make no row for SFT; None keeps all."""
    least_gap: float = Field(default=0.0, ge=0)
    """Best and worst answers whose scores differ by no more make no pair."""


@dataclass(frozen=True)
class Prompt:
    """A conversation to be answered."""

    messages: tuple[Message, ...]
    """Ends with the user's turn."""
    record: Mapping[str, Any]
    """What the scoring function is given: the row of data, JSON values only."""


@dataclass(frozen=True)
class RejectionReport:
    """What came of it."""

    prompts: int
    sft_rows: int
    pairs: int
    mean_score: float
    """Of all answers."""
    best_of: dict[int, float]
    """Mean score of the best of k answers, for k = 1, 2, 4, ... and all of them."""


def sample_best(
    engine: Engine,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    config: RejectionConfig,
    folder: Path,
    events: EventLog,
    *,
    origin: Mapping[str, Any],
) -> RejectionReport:
    """Answer every prompt ``config.answers`` times and keep the best and the worst.

    Args:
        engine: the model, with its prefix cache: a prompt is computed once for all its answers.
        prompts: what is answered.
        scorer: a reward model's (`puna.alignment.scoring.by_reward_model`) or a scoring function.
        config: how many, and how they are sampled.
        folder: gets `SCORED` (all answers with their scores), `SFT_ROWS` (``messages``) and `PAIRS`
            (``prompt``, ``chosen``, ``rejected``), a JSON object a line.
        events: receives a ``rejection_step`` event for each group of prompts; first of all, where
            some are answered already, a ``rejection_resume``.
        origin: what else the answers depend on, such as the model's and the scorer's names.

    Raises `UsageError` when ``folder`` was begun with other settings or other prompts.
    """
    _check_settings(folder, prompts, config, origin)
    path = folder / SCORED
    rows = _finished(path, config.prompts_at_once, len(prompts))
    started, before = time.perf_counter(), len(rows)
    if before:
        events.emit("rejection_resume", done=before, prompts=len(prompts))
    with explain_os_errors(path), path.open("ab", buffering=0) as file:
        for start in range(before, len(prompts), config.prompts_at_once):
            group = prompts[start : start + config.prompts_at_once]
            scored = list(_scored(engine, group, scorer, config, start))
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored)
            file.write(lines.encode())  # in one call: a kill leaves whole lines
            rows += scored
            seconds = time.perf_counter() - started
            events.emit(
                "rejection_step",
                done=len(rows),
                prompts=len(prompts),
                best=fmean(max(row["scores"]) for row in scored),
                mean=fmean(score for row in scored for score in row["scores"]),
                left_s=(len(prompts) - len(rows)) * seconds / (len(rows) - before),
            )
    return _keep(folder, prompts, rows, config)


def expected_best(scores: Sequence[float], k: int) -> float:
    """Mean of the best of ``k`` scores drawn without replacement: the k-th order statistic.

    The i-th smallest of n is the best of k in C(i - 1, k - 1) of C(n, k) draws, so this estimates
    best-of-k without bias from n answers (as Chen et al. 2021, arXiv 2107.03374, do for pass@k).
    """
    ranked, draws = sorted(scores), math.comb(len(scores), k)
    return sum(math.comb(i, k - 1) / draws * score for i, score in enumerate(ranked))


def _scored(
    engine: Engine, group: Sequence[Prompt], scorer: Scorer, config: RejectionConfig, start: int
) -> Iterator[dict[str, Any]]:
    tasks = [encode_task(engine.tokenizer, p.messages, p.record) for p in group]
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=stable_seed(config.seed, "rejection", start),
    )
    answers = sample_answers(engine, tasks, config.answers, sampling)
    scores = list(scorer(answers))
    for n, prompt in enumerate(group):
        span = slice(n * config.answers, (n + 1) * config.answers)
        yield {
            "prompt": [_fields(message) for message in prompt.messages],
            "answers": [_answer(answer) for answer in answers[span]],
            "scores": scores[span],
        }


def _answer(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "ended": answer.ended}


def _fields(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _keep(
    folder: Path, prompts: Sequence[Prompt], rows: list[dict[str, Any]], config: RejectionConfig
) -> RejectionReport:
    """Write the rows for SFT and the pairs, and count."""
    chats, pairs = [], []
    for row in rows:
        texts, scores = [answer["text"] for answer in row["answers"]], row["scores"]
        whole = [n for n, a in enumerate(row["answers"]) if a["ended"] and a["text"].strip()]
        if not whole:
            continue
        best = max(whole, key=scores.__getitem__)
        worst = min(range(len(scores)), key=scores.__getitem__)
        if config.least_score is None or scores[best] >= config.least_score:
            answer = {"role": "assistant", "content": texts[best]}
            chats.append({"messages": [*row["prompt"], answer]})
        apart = scores[best] - scores[worst] > config.least_gap
        if apart and texts[best].strip() != texts[worst].strip():
            sides = {"chosen": texts[best], "rejected": texts[worst]}
            pairs.append({"prompt": row["prompt"], **sides})
    for name, kept in ((SFT_ROWS, chats), (PAIRS, pairs)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
        write_text(folder / name, "".join(lines))
    sizes = sorted({min(2**n, config.answers) for n in range(config.answers.bit_length() + 1)})
    return RejectionReport(
        prompts=len(prompts),
        sft_rows=len(chats),
        pairs=len(pairs),
        mean_score=fmean(score for row in rows for score in row["scores"]),
        best_of={k: fmean(expected_best(row["scores"], k) for row in rows) for k in sizes},
    )


def _check_settings(
    folder: Path, prompts: Sequence[Prompt], config: RejectionConfig, origin: Mapping[str, Any]
) -> None:
    """Note what the answers depend on, or see that it is as noted."""
    if not prompts:
        raise UsageError("rejection sampling needs a prompt: the data holds none")
    data = sha256_value([[asdict(m) for m in p.messages] + [dict(p.record)] for p in prompts])
    # which answers are kept is decided anew at the end of every call
    sampled = config.model_dump(exclude={"least_score", "least_gap"})
    settings = {**sampled, **origin, "prompts": data}
    path = folder / _SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    before = json.loads(path.read_bytes())
    for key in sorted(before.keys() | settings.keys()):
        if before.get(key) != settings.get(key):
            raise UsageError(
                f"{folder} was begun with {key} {before.get(key)}, now it is {settings.get(key)}: "
                "give the same settings, or name another folder"
            )


def _finished(path: Path, at_once: int, n_prompts: int) -> list[dict[str, Any]]:
    """Rows of the groups that are whole; what follows them (the writer was killed) is cut off."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        lines = [line for line in file if line.endswith(b"\n")]
    if len(lines) < n_prompts:
        lines = lines[: len(lines) // at_once * at_once]
    os.truncate(path, sum(map(len, lines)))
    return [json.loads(line) for line in lines]
