"""The model: Llama of every size from one configuration, its cache and its chunked loss head."""

from puna.model.attention import additive, grouped_attention
from puna.model.cache import Cache, LayerCache
from puna.model.config import SIZES, LlamaConfig, RopeScaling, llama_config
from puna.model.llama import Llama
from puna.model.loss import IGNORED, cross_entropy_sum, token_logprobs

__all__ = [
    "IGNORED",
    "SIZES",
    "Cache",
    "LayerCache",
    "Llama",
    "LlamaConfig",
    "RopeScaling",
    "additive",
    "cross_entropy_sum",
    "grouped_attention",
    "llama_config",
    "token_logprobs",
]
