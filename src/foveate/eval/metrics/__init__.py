"""How answers are judged: every metric as sums over samples, so that one bootstrap serves them all."""

from .metric import Metric
from .registry import GROUPS, METRICS, named
from .tokenize import TOKENIZERS, remembering, tokenizer_of

__all__ = ["GROUPS", "METRICS", "TOKENIZERS", "Metric", "named", "remembering", "tokenizer_of"]
