"""Tuning on chats and on preferences: each method is an objective of the one training loop."""

from puna.alignment.dpo import DPOConfig, DPOObjective, PairRows, encode_pair, reference_logprobs
from puna.alignment.losses import dpo_loss
from puna.alignment.sft import encode_chat

__all__ = [
    "DPOConfig",
    "DPOObjective",
    "PairRows",
    "dpo_loss",
    "encode_chat",
    "encode_pair",
    "reference_logprobs",
]
