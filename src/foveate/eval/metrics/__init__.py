"""How answers are judged: every metric as sums over samples, so that one bootstrap serves them all."""

from .metric import Metric
from .registry import GROUPS, METRICS, PER_ANSWER, named, of_one
from .tokenize import TOKENIZERS, remembering, tokenizer_of

__all__ = [
    "GROUPS",
    "METRICS",
    "PER_ANSWER",
    "TOKENIZERS",
    "Metric",
    "named",
    "of_one",
    "remembering",
    "tokenizer_of",
]
