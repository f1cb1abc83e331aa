"""Models in and out: Hugging Face folders (read, written), GGUF files (read), and their names."""

from puna.formats.average import average_models
from puna.formats.hf_config import load_config
from puna.formats.huggingface import save_model
from puna.formats.resolve import load_model, load_tokenizer

__all__ = ["average_models", "load_config", "load_model", "load_tokenizer", "save_model"]
