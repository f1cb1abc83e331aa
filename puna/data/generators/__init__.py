"""Generated text with checkable answers: sums, numbers in order, countries, stories, small talk.

Whether a problem is trained or held out is a hash of the problem itself (`is_held_out`), so no
held-out problem occurs in training, whatever its wording.
"""

from puna.data.generators.chats import (
    Chat,
    PreferencePair,
    generate_chats,
    generate_pairs,
    generate_questions,
)
from puna.data.generators.documents import GeneratedText, generate_documents
from puna.data.generators.held_out import evaluation_questions, evaluation_strings
from puna.data.generators.problems import Question, is_held_out

__all__ = [
    "Chat",
    "GeneratedText",
    "PreferencePair",
    "Question",
    "evaluation_questions",
    "evaluation_strings",
    "generate_chats",
    "generate_documents",
    "generate_pairs",
    "generate_questions",
    "is_held_out",
]
