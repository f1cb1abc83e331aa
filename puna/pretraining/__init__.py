"""Pretraining: documents to tokens; its objective is the loop's next-token loss."""

from puna.pretraining.tokens import encode_documents

__all__ = ["encode_documents"]
