"""Does lm-eval work against `puna serve`? Its local-completions model, three tasks from local JSON.

Needs lm-eval 0.4.13 in an environment of its own (it brings 45 packages) and a running server:

    puna serve smollm2 --port 8000
    python -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install 'lm-eval[api]==0.4.13' torch
    /tmp/lm-eval/bin/python benchmarks/lm_eval_client.py --url http://127.0.0.1:8000 --model smollm2

Tokens are cut by the server (/tokenizer_info, /tokenize), then likelihoods of choices and of whole
texts and generated answers are asked for.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every file is here
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

DOCS = [
    {"question": "Llamas live in South", "choices": [" America", " Pole"], "answer": 0},
    {"question": "Two plus two is", "choices": [" nine", " four"], "answer": 1},
    {"question": "The capital of France is", "choices": [" Paris", " Lima"], "answer": 0},
    {"question": "Water freezes to", "choices": [" fire", " ice"], "answer": 1},
]


def tasks(path: Path) -> list[dict[str, Any]]:
    """A multiple-choice task, one of whole-text likelihood, one of generation."""
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choice = {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    rolling = {
        "task": "texts",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}{{choices[answer]}}.",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    generation = {
        "task": "answers",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    return [shared | task for task in (choice, rolling, generation)]


def main() -> None:
    """Run the tasks and print lm-eval's results as JSON."""
    from lm_eval import simple_evaluate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server listens")
    parser.add_argument("--model", default="smollm2", help="name the server knows the model by")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.jsonl"
        path.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
        found = simple_evaluate(
            model="local-completions",
            model_args={
                "base_url": f"{given.url}/v1/completions",
                "model": given.model,
                "tokenizer_backend": "remote",
                "max_length": 512,
            },
            tasks=tasks(path),
            batch_size=1,
            bootstrap_iters=0,
        )
    print(json.dumps(found["results"], indent=2))


if __name__ == "__main__":
    main()
