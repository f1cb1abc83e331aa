"""From sources to rows of tokens: reading, cleaning, deduplication, mixture, packing, order.

`build_corpus` turns a recipe's sources into documents and a report, `DataCard` shows the report,
`write_tokens` puts encoded documents on disk, `PackedRows` gives rows of them, `rows_of_step` says
which rows a training step takes.
"""

from puna.data.card import CorpusReport, DataCard
from puna.data.chats import ChatForm, NamedChat, held_out, read_chats
from puna.data.corpus import Corpus, CorpusConfig, SourceConfig, build_corpus
from puna.data.dialogues import Conversation, read_conversations
from puna.data.document import Document, read_documents, write_documents
from puna.data.geography import Country, read_countries
from puna.data.mix import Group, MixedRows, MixSource
from puna.data.order import WHOLE, Share, rows_of_step
from puna.data.packing import IGNORED, Batch, PackedRows, Packing, pack
from puna.data.preferences import NamedPair, UnfitPair, read_pairs
from puna.data.prompts import NamedPrompt, read_prompts
from puna.data.sources import SOURCES
from puna.data.tokens import TokenFile, write_tokens
from puna.data.wikipedia import Article, read_articles

__all__ = [
    "IGNORED",
    "SOURCES",
    "WHOLE",
    "Article",
    "Batch",
    "ChatForm",
    "Conversation",
    "Corpus",
    "CorpusConfig",
    "CorpusReport",
    "Country",
    "DataCard",
    "Document",
    "Group",
    "MixSource",
    "MixedRows",
    "NamedChat",
    "NamedPair",
    "NamedPrompt",
    "PackedRows",
    "Packing",
    "Share",
    "SourceConfig",
    "TokenFile",
    "UnfitPair",
    "build_corpus",
    "held_out",
    "pack",
    "read_articles",
    "read_chats",
    "read_conversations",
    "read_countries",
    "read_documents",
    "read_pairs",
    "read_prompts",
    "rows_of_step",
    "write_documents",
    "write_tokens",
]
