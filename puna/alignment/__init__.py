"""Tuning on chats and on preferences: each method is an objective of the one training loop."""

from puna.alignment.distill import DistillConfig, DistillObjective
from puna.alignment.dpo import DPOConfig, DPOObjective, PairRows
from puna.alignment.grpo import GRPO, GRPOConfig
from puna.alignment.kl import KLConfig
from puna.alignment.losses import dpo_loss
from puna.alignment.online import train_online
from puna.alignment.pairs import Comparison, encode_answers, encode_pair
from puna.alignment.ppo import PPO, PPOConfig
from puna.alignment.qat import quantisation_aware
from puna.alignment.reference import reference_logprobs
from puna.alignment.refusal import (
    RefusalConfig,
    RefusalObjective,
    RefusalRows,
    prompt_ids,
    refusing,
)
from puna.alignment.rejection import Prompt, RejectionConfig, sample_best
from puna.alignment.reward import (
    RankedRows,
    RewardConfig,
    RewardModel,
    RewardObjective,
    judge_rewards,
    save_reward_model,
)
from puna.alignment.rollouts import RolloutConfig, Task, each_by, encode_task, load_scorer
from puna.alignment.scoring import by_reward_model
from puna.alignment.sft import (
    ChatCounts,
    ChatSet,
    ChatSource,
    TooLong,
    encode_chat,
    write_chats,
)

__all__ = [
    "GRPO",
    "PPO",
    "ChatCounts",
    "ChatSet",
    "ChatSource",
    "Comparison",
    "DPOConfig",
    "DPOObjective",
    "DistillConfig",
    "DistillObjective",
    "GRPOConfig",
    "KLConfig",
    "PPOConfig",
    "PairRows",
    "Prompt",
    "RankedRows",
    "RefusalConfig",
    "RefusalObjective",
    "RefusalRows",
    "RejectionConfig",
    "RewardConfig",
    "RewardModel",
    "RewardObjective",
    "RolloutConfig",
    "Task",
    "TooLong",
    "by_reward_model",
    "dpo_loss",
    "each_by",
    "encode_answers",
    "encode_chat",
    "encode_pair",
    "encode_task",
    "judge_rewards",
    "load_scorer",
    "prompt_ids",
    "quantisation_aware",
    "reference_logprobs",
    "refusing",
    "sample_best",
    "save_reward_model",
    "train_online",
    "write_chats",
]
