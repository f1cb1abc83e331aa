"""Tuning on chats and on preferences: each method is an objective of the one training loop."""

from puna.alignment.dpo import DPOConfig, DPOObjective, PairRows
from puna.alignment.losses import dpo_loss
from puna.alignment.pairs import Comparison, encode_answers, encode_pair
from puna.alignment.reference import reference_logprobs
from puna.alignment.sft import encode_chat

__all__ = [
    "Comparison",
    "DPOConfig",
    "DPOObjective",
    "PairRows",
    "dpo_loss",
    "encode_answers",
    "encode_chat",
    "encode_pair",
    "reference_logprobs",
]
