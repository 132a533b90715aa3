"""The real distribution: text, images, or an analytic truth.

Of text it is documents, their split, the tokenizer and the packed blocks.
"""

from harness.data.analytic import Truth
from harness.data.images import ImageSet
from harness.data.real import RealData
from harness.data.text import TextCorpus
from harness.data.truths import make_truth

__all__ = ["ImageSet", "RealData", "TextCorpus", "Truth", "make_truth"]
