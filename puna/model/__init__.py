"""The model: Llama of every size from one configuration, its cache, chunked loss head, adapters."""

from puna.model.attention import additive, grouped_attention
from puna.model.cache import Cache, LayerCache
from puna.model.config import (
    SIZES,
    LlamaConfig,
    RopeScaling,
    llama_config,
    published_size,
)
from puna.model.llama import Llama
from puna.model.lora import LoraConfig, adapter_disabled, add_lora, weaken
from puna.model.loss import IGNORED, cross_entropy_sum, token_logprobs
from puna.model.merge import MergeReport, merge, merged_copy

__all__ = [
    "IGNORED",
    "SIZES",
    "Cache",
    "LayerCache",
    "Llama",
    "LlamaConfig",
    "LoraConfig",
    "MergeReport",
    "RopeScaling",
    "adapter_disabled",
    "add_lora",
    "additive",
    "cross_entropy_sum",
    "grouped_attention",
    "llama_config",
    "merge",
    "merged_copy",
    "published_size",
    "token_logprobs",
    "weaken",
]
