"""One text at a time beside transformers and llama.cpp: speed, perplexity, first token, JSON.

    python benchmarks/inference.py                      # everything, medians of 5
    python benchmarks/inference.py --only speed --quick

SmolLM2-135M on 2 fixed threads. Speed: prefill of 512 tokens, then 128 decoded behind them, the
sides in turn. Perplexity: of each format of the weights, on the same text; llama.cpp's files are
read into an fp32 model, which leaves out that it rounds activations too. First token: from the
start of a process of ``puna generate`` to its first letter. JSON: the same number of tokens with
and without a schema.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import peers
import torch
from harness import (
    FIXED_THREADS,
    THREADS,
    Claim,
    Side,
    all_cores,
    answer_questions,
    finish,
    machine,
    print_table,
    rounds,
)

from puna.core.devices import fast_dtype
from puna.core.wheels import cache_folder
from puna.evaluation.scoring import summed_logprobs
from puna.formats import load_model, load_tokenizer
from puna.formats.resolve import smollm2_folder
from puna.inference import Engine, EngineConfig, Request, Sampling, generate, load_engine, stream
from puna.inference.constraint import Grammars

PROMPT, NEW = 512, 128
WINDOWS = 16  # of PROMPT tokens, for perplexity
BATCH = 16
WEIGHTS = ("fp32", "bf16", "int8", "int4", "w8a8")
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 2 * NEW}
TRANSFORMERS = "transformers bf16" if fast_dtype("cpu") == torch.bfloat16 else "transformers fp32"
GENERATE = ("-m", "puna", "generate", "smollm2", "--prompt", "Once upon a time")


def prompt() -> list[int]:
    """Real text: the beginning of a file of Python's library."""
    return load_tokenizer("smollm2").encode(Path(argparse.__file__).read_text())[:PROMPT]


def windows() -> list[list[int]]:
    """Pieces of Python's language reference, spread over all of it."""
    text = "\n\n".join(body for _, body in sorted(topics.items()))
    ids = load_tokenizer("smollm2").encode(text)
    step = (len(ids) - PROMPT) // WINDOWS
    return [ids[start : start + PROMPT] for start in range(0, WINDOWS * step, step)]


# --- the sides, each in a process of its own


def puna_side(weights: str) -> Callable[..., dict[str, float]]:
    engine = load_engine(
        "smollm2",
        EngineConfig(
            weights=weights,  # type: ignore[arg-type]
            compile=True,
            prefix_cache=False,
            max_rows=BATCH,
            cache_tokens=BATCH * (PROMPT + NEW),
        ),
    )
    measures = {"speed": engine_speed, "perplexity": engine_perplexity, "json": json_speed}

    def answer(measure: str) -> dict[str, float]:
        return measures[measure](engine)

    return answer


def engine_speed(engine: Engine) -> dict[str, float]:
    request = Request(prompt(), Sampling(max_new_tokens=NEW, ignore_stop_tokens=True))
    started = time.perf_counter()
    arrivals = [(time.perf_counter(), len(delta.ids)) for delta in stream(engine, request)]
    assert sum(n for _, n in arrivals) == NEW
    first, last = arrivals[0][0], arrivals[-1][0]
    return {"prefill": PROMPT / (first - started), "decode": (NEW - 1) / (last - first)}


def engine_perplexity(engine: Engine) -> dict[str, float]:
    sampling = Sampling(max_new_tokens=0, prompt_logprobs=True, logprobs=0)
    found = generate(engine, [Request(window, sampling) for window in windows()])
    entries = [entry for each in found for entry in each.prompt_logprobs or [] if entry]
    return {"perplexity": math.exp(-math.fsum(e.logprob for e in entries) / len(entries))}


def json_speed(engine: Engine) -> dict[str, float]:
    """Tokens/s of free text and of text held to a schema, one row and a batch of them."""
    grammars = Grammars(engine.tokenizer)
    sampling = Sampling(max_new_tokens=NEW, ignore_stop_tokens=True)
    ids = engine.tokenizer.encode("A long list of numbers as JSON:")

    def speed(rows: int, constrained: bool) -> float:
        started = time.perf_counter()
        requests = [
            Request(
                ids,
                sampling,
                constraint=grammars.json_schema(SCHEMA) if constrained else None,
            )
            for _ in range(rows)
        ]
        written = sum(len(each.ids) for each in generate(engine, requests))
        assert written == rows * NEW, written
        return written / (time.perf_counter() - started)

    return {
        f"{kind}_{rows}": speed(rows, kind == "schema")
        for rows in (1, BATCH)
        for kind in ("free", "schema")
    }


def transformers_side(_: str) -> Callable[..., dict[str, float]]:
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=fast_dtype("cpu"))
    ids = torch.tensor([prompt()])

    @torch.inference_mode()
    def answer(measure: str) -> dict[str, float]:  # noqa: ARG001  it knows one
        cache = DynamicCache(config=model.config)
        started = time.perf_counter()
        token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        first = time.perf_counter()
        for _ in range(NEW - 1):
            token = model(token, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        last = time.perf_counter()
        return {"prefill": PROMPT / (first - started), "decode": (NEW - 1) / (last - first)}

    return answer


def gguf_side(kind: str) -> Callable[..., dict[str, float]]:
    model, _ = load_model(peers.gguf(kind))

    def answer(measure: str) -> dict[str, float]:  # noqa: ARG001  it knows one
        scored = [[True] * PROMPT] * WINDOWS
        total = math.fsum(summed_logprobs(model, windows(), scored))
        return {"perplexity": math.exp(-total / (WINDOWS * (PROMPT - 1)))}

    return answer


SIDES = {"puna": puna_side, "transformers": transformers_side, "gguf": gguf_side}


def open_side(kind: str, which: str) -> Side:
    return Side(__file__, "--side", kind, which)


def llama_bench(kind: str) -> dict[str, float]:
    """Tokens/s of llama.cpp's own benchmark, the decoding behind a prompt as ours is."""
    common = ["-m", str(peers.gguf(kind)), "-t", str(THREADS), "-r", "1", "-o", "json"]
    tests = {
        "prefill": ["-p", str(PROMPT), "-n", "0"],
        "decode": ["-p", "0", "-n", str(NEW), "-d", str(PROMPT)],
    }
    found = {}
    for name, test in tests.items():
        done = subprocess.run(
            [peers.program("llama-bench"), *common, *test],
            env=os.environ | FIXED_THREADS,
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = json.loads(done.stdout)[0]["avg_ts"]
    return found


# --- what is measured


def speed(repeats: int) -> tuple[dict[str, Any], list[Claim]]:
    sides = {f"Puna {weights}": open_side("puna", weights) for weights in WEIGHTS}
    sides[TRANSFORMERS] = open_side("transformers", "")
    measures: dict[str, Callable[[], dict[str, float]]] = {
        name: lambda side=side: side.ask(measure="speed") for name, side in sides.items()
    }
    for kind in peers.TYPES:
        measures[f"llama.cpp {kind}"] = lambda kind=kind: llama_bench(kind)
    try:
        found = rounds(measures, repeats)
    finally:
        for side in sides.values():
            side.close()
    print("\ntokens/s, one text")
    print_table(
        ["", f"prefill of {PROMPT}", f"decode of {NEW}"],
        [[name, f"{f['prefill']:,.0f}", f"{f['decode']:,.1f}"] for name, f in found.items()],
    )
    return found, speed_claims(found)


def speed_claims(found: dict[str, dict[str, float]]) -> list[Claim]:
    wanted = [
        ("decode", "bf16", TRANSFORMERS, 3.0, None),
        ("decode", "bf16", "llama.cpp BF16", 1.0, 1.3),
        ("decode", "int8", "llama.cpp Q8_0", 1.2, 1.6),
        ("decode", "int4", "llama.cpp Q4_1", 1.1, None),
        ("decode", "int4", "llama.cpp Q4_0", 0.9, 1.1),
        ("prefill", "bf16", "llama.cpp BF16", 1.05, None),
        ("prefill", "int8", "llama.cpp Q8_0", 1.5, None),
        ("prefill", "w8a8", "llama.cpp Q8_0", 1.5, None),
    ]
    return [
        Claim(
            f"{phase} {weights}, tokens/s",
            found[f"Puna {weights}"][phase],
            required,
            found[peer][phase],
            peer,
            goal,
        )
        for phase, weights, peer, required, goal in wanted
    ]


def perplexity(_: int) -> tuple[dict[str, Any], list[Claim]]:
    sides = {f"Puna {weights}": ("puna", weights) for weights in WEIGHTS}
    sides |= {f"llama.cpp {kind}": ("gguf", kind) for kind in peers.TYPES}
    found = {}
    for name, which in sides.items():  # exact, so once; one model at a time in memory
        side = open_side(*which)
        try:
            found[name] = side.ask(measure="perplexity")["perplexity"]
        finally:
            side.close()
    print(f"\nperplexity, {WINDOWS} x {PROMPT} tokens of Python's language reference")
    print_table(["", "perplexity"], [[name, f"{value:.3f}"] for name, value in found.items()])
    ours = {weights: found[f"Puna {weights}"] for weights in WEIGHTS}
    return found, [
        Claim("perplexity int8", ours["int8"], 1.01, ours["bf16"], "Puna bf16", at_most=True),
        Claim("perplexity w8a8", ours["w8a8"], 1.01, ours["bf16"], "Puna bf16", at_most=True),
        Claim("perplexity int4", ours["int4"], 1.06, ours["bf16"], "Puna bf16", at_most=True),
        Claim(
            "perplexity int4",
            ours["int4"],
            1.01,
            found["llama.cpp Q4_1"],
            "llama.cpp Q4_1",
            at_most=True,
        ),
    ]


def first_token(repeats: int) -> tuple[dict[str, Any], list[Claim]]:
    with tempfile.TemporaryDirectory() as scratch:
        fresh = (str(Path(scratch) / str(n)) for n in range(repeats + 1))
        kept = next(fresh)
        seconds_to_letters(kept, "--compile")
        measures = {
            "cold": lambda: seconds_to_letters(next(fresh), "--compile"),
            "cached": lambda: seconds_to_letters(kept, "--compile"),
            "eager": lambda: seconds_to_letters(kept, "--no-compile"),
        }
        found = rounds(measures, repeats, warm_up=0)
    print("\nseconds from the start of the process")
    print_table(
        ["", "first letter", f"{NEW} tokens"],
        [[name, f"{f['first']:.2f}", f"{f['all']:.2f}"] for name, f in found.items()],
    )
    limits = {"cold": 15.0, "cached": 4.0, "eager": 2.0}
    return found, [
        Claim(f"first token {name}, s", found[name]["first"], limit, at_most=True)
        for name, limit in limits.items()
    ]


def seconds_to_letters(compiler_cache: str, mode: str) -> dict[str, float]:
    """Time to the first letter and to the end of a text, in a process of its own."""
    own = Path(compiler_cache) / "puna"  # Puna's cache, but without its compiled code
    own.mkdir(parents=True, exist_ok=True)
    for item in cache_folder().iterdir():
        if item.name != "compiled" and not (own / item.name).exists():
            (own / item.name).symlink_to(item)
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": compiler_cache,
        "PUNA_CACHE": str(own),
        "PYTHONDONTWRITEBYTECODE": "",  # as in a person's shell: compiled once, then read
    }
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *GENERATE, "--max-new-tokens", str(NEW), mode],
        stdout=subprocess.PIPE,
        env=os.environ | FIXED_THREADS | caches,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        first = time.perf_counter() - started
        process.stdout.read()
    assert process.returncode == 0
    return {"first": first, "all": time.perf_counter() - started}


def json_output(repeats: int) -> tuple[dict[str, Any], list[Claim]]:
    side = open_side("puna", "bf16")
    try:
        found = rounds({"Puna bf16": lambda: side.ask(measure="json")}, repeats)["Puna bf16"]
    finally:
        side.close()
    return found, [
        Claim(
            f"JSON schema, {rows} at once, tokens/s",
            found[f"schema_{rows}"],
            0.9,
            found[f"free_{rows}"],
            "free text",
        )
        for rows in (1, BATCH)
    ]


MEASURES = {
    "speed": speed,
    "perplexity": perplexity,
    "first-token": first_token,
    "json": json_output,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=MEASURES, action="append", help="repeatable")
    parser.add_argument("--quick", action="store_true", help="medians of 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    if arguments.side:
        kind, which = arguments.side
        answer_questions(SIDES[kind](which))
        return
    all_cores()
    report: dict[str, Any] = {"machine": machine()}
    claims: list[Claim] = []
    for name in arguments.only or MEASURES:
        report[name], found = MEASURES[name](3 if arguments.quick else 5)
        claims += found
    finish(report, claims, arguments.json)


if __name__ == "__main__":
    main()
