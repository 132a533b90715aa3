"""Columns of what arrives in a pool and what judges let pass, whatever the learner is."""

from __future__ import annotations

from harness.registry import Metric

_PROMPTS = "data.prompted"
POOL = (
    Metric("pool/trained_real_share", "real share of what is trained on", worse="lower"),
    Metric("pool/kept_share", "share of the pool that passes"),
    Metric("pool/recall", "synthetic examples that are found and dropped", worse="lower"),
    Metric("pool/false_positive_rate", "real examples that are dropped", worse="higher"),
    Metric("pool/real_share", "real share of the pool", drawn=False),
    Metric("pool/trained", "training examples", drawn=False),
    Metric("pool/<filter>/kept_share", "share that passes <filter>", drawn=False),
    Metric("pool/<filter>/recall", "synthetic examples that <filter> drops", drawn=False),
    Metric("pool/<filter>/false_positive_rate", "real examples that <filter> drops", drawn=False),
)
"""What became of what arrived unlabelled: of records whose regime has a pool."""
JUDGED = (
    Metric("judge/true_share", "completions read for training that are right", worse="lower", needs=_PROMPTS),
    Metric("judge/precision", "completions trained on that are right", worse="lower", needs=_PROMPTS),
    Metric("judge/accepted_share", "completions that are trained on", needs=_PROMPTS),
    Metric("judge/reward", "reward of the completions read for training", needs=_PROMPTS),
    Metric(
        "judge/heldout_auc",
        "right completions that a trained judge ranks above wrong ones, held out",
        needs=_PROMPTS,
    ),
    Metric(
        "judge/heldout_accuracy",
        "held out completions of which a trained judge is right",
        drawn=False,
        needs=_PROMPTS,
    ),
    Metric(
        "judge/heldout_baseline", "the same of a judge that always says the same", drawn=False, needs=_PROMPTS
    ),
    Metric("judge/judged", "completions read for training", drawn=False, needs=_PROMPTS),
    Metric("judge/checker_raised", "of these, the checker raised an error on", drawn=False, needs=_PROMPTS),
    Metric(
        "judge/checker_timed_out",
        "of these, the checker did not return in time on",
        drawn=False,
        needs=_PROMPTS,
    ),
    Metric("judge/accepted", "completions trained on", drawn=False, needs=_PROMPTS),
)
"""What judges let pass: of records whose data have a truth."""
