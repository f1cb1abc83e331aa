"""What the shield costs `puna serve`: tokens a second of streams with it on and off.

    python benchmarks/shield_serving.py

Three servers of SmolLM2-135M, one with ``--shield warn`` and two with ``--shield off``, are asked
in turn for the same programs, so all meet the same weather; how far the two that are alike lie
apart says what the ratio is worth. Answers hold code blocks, as the prompts ask for them; the
shield has to scan every line. (With ``block`` the server would do less: it ends an answer that
holds insecure code, so its rate would not compare.) On a machine that does other things this ratio
says little; so the processor time of the shield for each token of answers full of code is measured
too, and what share of a second it is at the faster server's rate.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness import Claim, all_cores, finish
from serving import Server, free_port
from shield_answers import answers
from shield_leak import spoken

from puna.core.devices import describe_machine
from puna.core.errors import PunaError
from puna.formats import load_tokenizer
from puna.safety.shield import Policy, stream
from puna.tokenizer import Message

CLIENTS, ANSWER = 16, 128
TASKS = (
    "adds two numbers", "counts the words of a text", "reads a file and prints its lines",
    "sorts a list of names", "checks whether a number is prime", "reverses a string",
    "finds the largest value of a list", "writes a dictionary to a JSON file",
)  # fmt: skip
LANGUAGES = ("Python", "JavaScript", "C", "Java")


def prompts() -> list[list[int]]:
    """A chat for each language and task, as token ids."""
    tokenizer = load_tokenizer("smollm2")
    wanted = [
        f"Write a {language} function that {task}. Answer with a code block only."
        for language in LANGUAGES
        for task in TASKS
    ]
    chats = [[Message("user", text)] for text in wanted]
    return [tokenizer.chat.encode(tokenizer, c, add_generation_prompt=True).ids for c in chats]


def server(shield: str) -> Server:
    """A server that is ready."""
    port = free_port()
    command = [sys.executable, "-m", "puna", "serve", "smollm2", "--port", str(port), "--no-logs"]
    return Server([*command, "--shield", shield], port, "/ready")


def load(which: Server, asked: list[list[int]]) -> float:
    """Tokens a second of all clients."""
    numbers = [str(number) for number in (which.port, CLIENTS, ANSWER)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("load.py"), *numbers],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise PunaError(f"an answer failed; the end of the server's log: {which.said()}")
    return float(json.loads(done.stdout)["tokens_per_s"])


def measure(repeats: int) -> dict[str, Any]:
    """Medians of the sides and their ratios; the side of the shield is set against both others."""
    asked = prompts()
    rates: dict[str, list[float]] = {"off": [], "warn": [], "off again": []}
    with ExitStack() as stack:
        sides = {name: partial(load, _kept(stack, name.split()[0]), asked) for name in rates}
        print("  the servers are ready", file=sys.stderr)
        for turn in range(repeats + 1):
            first = turn % len(sides)
            for name in [*sides, *sides][first : first + len(sides)]:
                rate = sides[name]()
                if turn:  # the first round warms up
                    rates[name].append(rate)
                    print(f"  {turn}/{repeats} shield {name}: {rate:,.0f}", file=sys.stderr)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {
        **medians,
        "rates": rates,
        "ratio": medians["warn"] / statistics.median(rates["off"] + rates["off again"]),
        "control": medians["off again"] / medians["off"],
        "us a token": {mode: token_us(mode) for mode in ("warn", "block")},
    }


def token_us(mode: Literal["warn", "block"]) -> float:
    """Microseconds of processor time the shield takes for a token, pushed one by one."""
    tokenizer = load_tokenizer("smollm2")
    texts = [one.text for one in answers(1, 400, spoken()) if one.planted is None]
    pieces = [[tokenizer.decode([each]) for each in tokenizer.encode(text)] for text in texts]
    spent = []
    for _ in range(5):
        started = time.thread_time()
        for answer in pieces:
            watch = stream(Policy(mode=mode))
            for piece in answer:
                watch.push(piece)
            watch.flush()
        spent.append(time.thread_time() - started)
    return statistics.median(spent) / sum(map(len, pieces)) * 1e6


def _kept(stack: ExitStack, shield: str) -> Server:
    made = server(shield)
    stack.callback(made.close)
    return made


def main() -> int:
    """Measure and say what holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None, help="write everything here")
    options = parser.parse_args()
    all_cores()
    report: dict[str, Any] = {"machine": describe_machine(), "serving": measure(options.repeats)}
    found = report["serving"]
    share = max(found["us a token"].values()) * 1e-6 * max(found["off"], found["warn"])
    print(f"two servers without the shield: {found['control']:.3f}")
    claims = [
        Claim("tokens/s with the shield, of those without", found["ratio"], 0.97),
        Claim("share of a second the shield takes", share, 0.03, at_most=True),
    ]
    finish(report, claims, options.json)
    return 0 if all(claim.met for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
