"""Tuning on chats and on preferences: each method is an objective of the one training loop."""

from puna.alignment.dpo import DPOConfig, DPOObjective, PairRows
from puna.alignment.losses import dpo_loss
from puna.alignment.pairs import Comparison, encode_answers, encode_pair
from puna.alignment.reference import reference_logprobs
from puna.alignment.sft import (
    ChatCounts,
    ChatSet,
    ChatSource,
    TooLong,
    encode_chat,
    write_chats,
)

__all__ = [
    "ChatCounts",
    "ChatSet",
    "ChatSource",
    "Comparison",
    "DPOConfig",
    "DPOObjective",
    "PairRows",
    "TooLong",
    "dpo_loss",
    "encode_answers",
    "encode_chat",
    "encode_pair",
    "reference_logprobs",
    "write_chats",
]
