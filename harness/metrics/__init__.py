"""Metrics: pure functions from arrays to numbers.

Each with its source and a version that enters the evaluation's key.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.components import LEARNERS


def versions(learner: str) -> Mapping[str, int | str]:
    """The groups of metrics of a learner, with their versions."""
    found = LEARNERS.loaded[learner]
    if found.package:
        return {learner: f"{found.package}/{found.plugin.metrics_version}"}
    return found.plugin.groups


BYTES_OF_TOKENS = {"likelihood": 3}
"""Versions where the test text is more than ASCII without special tokens: bits per byte counted blocks
decoded by themselves."""
LEXICAL_OF_SHORT = {"lexical": 2}
"""Versions where real examples are shorter than the longest n-grams that are counted: an earlier one counted
these all the same, and said of a model that writes as the data do that it had collapsed."""
OTHERS_VERSION = 1
"""Of the metrics on other real texts, which enter the key only where there are such texts."""
OTHERS_BYTES_OF_TOKENS = 2
"""The same, where one of them is more than ASCII without special tokens."""
POOL_VERSION = 1
"""Of what became of a pool (`harness.records.Selection`), which enters the key only where there is one."""
TASK_VERSION = 1
"""Of how test prompts of a task are answered, which enters the key only where there is one."""
KL_OF_TOKENS = {"kl": 2}
"""Versions where a model that answers prompts scores more tokens than its tokenizer knows: ``task/kl``
compared probabilities among the known ones with probabilities among all."""
DRIFT_VERSION = 1
"""Of how far a language model has moved from generation 0's (`drift/...`)."""
SCORES_VERSION = 1
"""Of the values per example that are kept beside a record: raised where they change by more than rounding.

It is in no key: where the weights are gone that would be needed to compute them, an evaluation takes them
from an earlier one of the same fit and corpus that had other metrics or prompts.
"""
