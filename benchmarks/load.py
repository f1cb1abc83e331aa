"""Clients of an OpenAI server: each asks, reads the whole stream, and asks again.

    python benchmarks/load.py PORT CLIENTS ANSWER < prompts.json

A process apart from the server and as light as can be, since both share the cores: bytes are
scanned, not parsed. Prompts are lists of token ids. Prints one JSON object; ``load_cpu`` is the
share of one core that this process took.
"""

import asyncio
import json
import re
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

LAST_CHUNK = b"\r\n0\r\n\r\n"  # without its first line end, a header could look like it
COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


async def ask(port: int, prompt: Sequence[int], answer: int) -> float:
    """Seconds to the first token of one answer, after reading all of it.

    Over a connection of its own: llama.cpp's server closes it after a stream.
    """
    body = json.dumps(
        {
            "model": "smollm2",
            "prompt": prompt,
            "max_tokens": answer,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_prompt": False,  # of llama.cpp's server: each prompt is its own here
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    received, first = bytearray(), 0.0
    while not received.endswith(LAST_CHUNK):
        piece = await reader.read(65536)
        received += piece
        if not piece or not received.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(received[:500].decode(errors="replace"))
        if not first and b'"text"' in received:
            first = time.perf_counter() - started
    writer.close()
    counts = COMPLETION_TOKENS.findall(received)
    if not counts or int(counts[-1]) != answer:
        raise ValueError(f"not {answer} tokens: {received[-500:].decode(errors='replace')}")
    return first


async def client(port: int, prompts: Iterator[Sequence[int]], answer: int) -> list[float]:
    """One client: the next prompt as soon as the last answer is complete."""
    return [await ask(port, prompt, answer) for prompt in prompts]


async def load(
    port: int, clients: int, answer: int, prompts: Sequence[Sequence[int]]
) -> dict[str, float]:
    """All clients at once; figures of the whole."""
    cpu, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    shared = iter(prompts)
    found = await asyncio.gather(*(client(port, shared, answer) for _ in range(clients)))
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
    cuts = statistics.quantiles((t for times in found for t in times), n=20)
    return {
        "tokens_per_s": len(prompts) * answer / seconds,
        "first_p50_s": cuts[9],
        "first_p95_s": cuts[18],
        "load_cpu": cpu_s / seconds,
    }


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps(asyncio.run(load(*numbers, prompts=json.load(sys.stdin)))))
