"""Figures that others published, to stand beside ours, each with where it stands.

Taken from the abstracts and as others quote the papers. They were measured with the published
prompts and other judges, so they say where a model stands, not which of two close ones is better.
"""

from typing import Any

_SECEVAL_1 = "Bhatt et al. 2023, Purple Llama CyberSecEval, arXiv 2312.04724"
_SECEVAL_2 = "Bhatt et al. 2024, CyberSecEval 2, arXiv 2404.13161, abstract"
_HERD = "The Llama 3 Herd of Models, arXiv 2407.21783, section 5.4"
# suite, who, rate or its ends, where from
_FIGURES: tuple[tuple[str, str, str, str], ...] = (
    ("instruct", "models tested, on average", "30%", _SECEVAL_1),
    ("autocomplete", "models tested, on average", "30%", _SECEVAL_1),
    ("injection", "models tested, GPT-4 and Llama 3 70B among them", "26% to 41%", _SECEVAL_2),
    ("injection", "Llama 3 405B", "21.7%", _HERD),
    ("interpreter", "Llama 3 405B", "10.4%", _HERD),
    ("interpreter", "Llama 3 70B", "3.8%", _HERD),
)  # fmt: skip


def figures_of(suite: str) -> list[dict[str, Any]]:
    """Published figures of a suite: ``who``, ``rate``, ``source``."""
    return [
        {"who": who, "rate": rate, "source": source}
        for name, who, rate, source in _FIGURES
        if name == suite
    ]
