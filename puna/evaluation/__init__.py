"""What a model is worth: likelihood against plain baselines, answers, preferences."""

from puna.evaluation.baselines import Baselines, measure_baselines
from puna.evaluation.likelihood import BitsPerByte, bits_per_byte, document_ids
from puna.evaluation.preferences import (
    PairLogprobs,
    PreferenceReport,
    pair_logprobs,
    preference_accuracy,
)
from puna.evaluation.questions import ExactMatch, Reply, exact_match, model_answers

__all__ = [
    "Baselines",
    "BitsPerByte",
    "ExactMatch",
    "PairLogprobs",
    "PreferenceReport",
    "Reply",
    "bits_per_byte",
    "document_ids",
    "exact_match",
    "measure_baselines",
    "model_answers",
    "pair_logprobs",
    "preference_accuracy",
]
