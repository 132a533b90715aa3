"""The real distribution: text, images, or an analytic truth.

Of text it is documents, their split, the tokenizer and the packed blocks.
"""

from harness.data.analytic import Truth, make_truth
from harness.data.base import RealData
from harness.data.images import ImageSet
from harness.data.text import TextCorpus

__all__ = ["ImageSet", "RealData", "TextCorpus", "Truth", "make_truth"]
