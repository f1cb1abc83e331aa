"""Llama 3's special tokens and the pattern that cuts text before BPE.

Both follow ``llama_models/llama3/tokenizer.py`` of Meta's package llama-models 0.3.0.
"""

from puna.core.errors import UsageError

N_SPECIAL = 256  # Llama 3 gives its special tokens the last 256 ids
NAMED_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
_LAST_RESERVED_NAMED = 1  # reserved tokens 0 and 1 sit among the named ones
MIN_SPECIAL = NAMED_SPECIAL.index("<|eot_id|>") + 1
"""Special tokens that text and chat cannot do without."""


def special_tokens(n_special: int = N_SPECIAL) -> list[str]:
    """The first ``n_special`` of Llama 3's special tokens, in the order of their ids.

    Raises `UsageError` outside ``MIN_SPECIAL``..256.
    """
    if not MIN_SPECIAL <= n_special <= N_SPECIAL:
        raise UsageError(f"n_special is {n_special}: choose {MIN_SPECIAL} to {N_SPECIAL}")
    first = _LAST_RESERVED_NAMED + 1
    n_reserved = N_SPECIAL - len(NAMED_SPECIAL)
    reserved = [f"<|reserved_special_token_{first + i}|>" for i in range(n_reserved)]
    return [*NAMED_SPECIAL, *reserved][:n_special]


def split_pattern(digit_group: int = 3) -> str:
    """Llama 3's regular expression; BPE never merges across its matches.

    Args:
        digit_group: longest run of digits in one piece, 1 to 3; Llama 3 has 3.
    """
    if digit_group not in (1, 2, 3):
        raise UsageError(f"digit_group is {digit_group}: choose 1, 2 or 3")
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word with the space or sign before it
        rf"|\p{{N}}{{1,{digit_group}}}"  # digits, from the left
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation with the line end after it
        r"|\s*[\r\n]+"  # line ends
        r"|\s+(?!\S)"  # spaces, but the last one, which goes with the next word
        r"|\s+"
    )
