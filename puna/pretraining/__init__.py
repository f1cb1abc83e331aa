"""Pretraining: documents to tokens; its objective is the loop's next-token loss."""

from puna.pretraining.tokens import document_tokens, encode_documents

__all__ = ["document_tokens", "encode_documents"]
