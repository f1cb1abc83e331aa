"""Puna grows a Llama through its whole life: text, tokens, training, tuning, judgement, talk.

``puna.Llama`` is the model with everything on it::

    model = puna.Llama.from_pretrained("smollm2")
    print(model.chat("What is a llama?"))
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Llama", "LlamaConfig", "Message", "Tokenizer", "__version__", "llama_config"]


def __getattr__(name: str) -> Any:
    # On demand, so that `puna --help` need not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module 'puna' has no attribute '{name}'")
    from puna import api

    return getattr(api, name)
