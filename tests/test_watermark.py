"""The watermark: what knows nothing of the key looks like chance, what was written with it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import TEXT, Make, merged
from scipy import stats

from harness.components.filters import WatermarkFilter
from harness.curation.watermark import watermark
from harness.errors import DataError
from harness.metrics.watermark import GreenLists, green_count
from harness.records import Examples
from harness.registry import Known

VOCAB = 64


def text(rows: int, length: int, seed: int = 0) -> Examples:
    return Examples.full(np.random.default_rng(seed).integers(0, VOCAB, (rows, length)).astype(np.int32))


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "context"), [(0.25, 1), (0.5, 2)])
def test_z_scores_of_other_texts_are_those_of_chance(gamma: float, context: int) -> None:
    """Over many keys a token is green with probability gamma, so z has mean 0 and variance 1."""
    scores = np.concatenate(
        [GreenLists(seed, VOCAB, gamma, context).z_scores(text(4, 200, seed)) for seed in range(150)]
    )
    assert abs(scores.mean()) < 4 / np.sqrt(len(scores))
    assert abs(scores.var() - 1) < 4 * np.sqrt(2 / len(scores))
    beyond = int((scores > 2).sum())
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], len(scores), stats.norm.sf(2))
    # T = 200 - context tokens: the binomial's upper tail at 2 is heavier than the normal's by up to a half
    assert low <= beyond <= 1.5 * high


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [1.0, 2.0, 3.0])
def test_real_text_is_lost_as_often_as_theory_says(
    make_config: Make, tmp_path: Any, threshold: float
) -> None:
    """Of T distinct pairs in a block of real text each is green with probability gamma, over keys, so the
    filter drops it with the probability of the binomial distribution's tail; 4 standard errors over keys."""
    from chains import open_prepared

    prepared, _ = open_prepared(make_config(merged(TEXT, {"data.block_size": 32})), tmp_path / "root")
    real = prepared.data[0].real
    blocks, section = real.real(0, 60), WatermarkFilter(kind="watermark", threshold=threshold)
    pairs = np.array([len(set(zip(row, row[1:], strict=False))) for row in blocks.values.tolist()])
    assert pairs.min() < 31 == pairs.max(), "some blocks repeat themselves"
    edge = 0.25 * pairs + threshold * np.sqrt(pairs * 0.25 * 0.75)
    theory = stats.binom.sf(np.floor(edge + 1e-9), pairs, 0.25).mean()
    dropped = [1 - watermark(section, blocks, Known(real, key, 1, np.zeros(60))).mean() for key in range(150)]
    assert abs(np.mean(dropped) - theory) < 4 * np.std(dropped, ddof=1) / np.sqrt(150)


def test_a_repeated_context_counts_once() -> None:
    lists = GreenLists(0, VOCAB, 0.25, 1)
    (row,) = text(1, 40).rows()
    once = Examples.full(row[None])
    often = Examples.full(np.concatenate([row, row, row])[None])
    # the same pairs again, and the one where the copies meet
    assert abs(lists.z_scores(once)[0] - lists.z_scores(often)[0]) < 0.5
    assert lists.z_scores(Examples.full(row[None, :1]))[0] == 0


def test_lists_have_their_size_and_depend_on_key_and_context() -> None:
    lists = GreenLists(0, VOCAB, 0.25, 1)
    assert lists.green((3,)).sum() == 16 == green_count(0.25, VOCAB)
    assert (lists.green((3,)) == GreenLists(0, VOCAB, 0.25, 1).green((3,))).all()
    assert (lists.green((3,)) != lists.green((4,))).any()
    assert (lists.green((3,)) != GreenLists(1, VOCAB, 0.25, 1).green((3,))).any()
    assert lists.rows(np.zeros((5, 0), dtype=np.int64)) is None


@pytest.mark.slow
def test_what_is_written_with_a_mark_is_found() -> None:
    """Uniform logits: a green token has probability p = gamma e^delta / (gamma e^delta + 1 - gamma)."""
    torch = pytest.importorskip("torch")
    from harness.config.schema import Sample
    from harness.learners.language_model.sampling import Sampler

    class Uniform(torch.nn.Module):  # type: ignore[name-defined,misc]
        device = torch.device("cpu")
        config = None

        def __init__(self) -> None:
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: Any, **_: Any) -> Any:
            shape = (*input_ids.shape, VOCAB)
            return type("Output", (), {"logits": torch.zeros(shape)})

    gamma, delta, rows, length = 0.25, 1.5, 60, 80
    section = Sample(watermark={"gamma": gamma, "delta": delta})
    lists = GreenLists(7, VOCAB, gamma, 1)
    sampler = Sampler(Uniform(), section, 0, VOCAB - 1, vocab_size=VOCAB, cached=False, green=lists)
    uniform = np.random.default_rng(1).random((rows, length))
    prompts = np.zeros((rows, 0), dtype=np.int64)
    found = sampler.draw(prompts, length, uniform)
    hits = [lists.green((a,))[b] for row in found.values.tolist() for a, b in zip(row, row[1:], strict=False)]
    p = gamma * np.exp(delta) / (gamma * np.exp(delta) + 1 - gamma)
    assert abs(np.mean(hits) - p) < 4 * np.sqrt(p * (1 - p) / len(hits))
    assert lists.z_scores(found).mean() > 5 and GreenLists(8, VOCAB, gamma, 1).z_scores(found).mean() < 1
    alone = sampler.draw(prompts[:1], length, uniform[:1])
    assert (alone.values[0] == found.values[0]).all(), "an example does not depend on its batch"


@pytest.mark.slow
def test_who_marks_and_filters_trains_on_nothing_of_its_own(
    ranks: Any, make_config: Make, tmp_path: Any
) -> None:
    """A strong mark is found in all that arrives; of real text as much is lost as chance says."""
    from chains import run_all

    regime = {"kind": "stream", "synthetic_ratio": 0.5}
    changes = {
        "regime": regime,
        "data.num_examples": 64,
        "data.block_size": 32,
        "learner.model.context": 64,
        "learner.sample.watermark": {"delta": 12.0},
        "filters": [{"kind": "watermark", "threshold": 4.0}],
        "generations": 1,
    }
    prepared, store = run_all(make_config(merged(TEXT, changes)), tmp_path / "root", ranks=ranks)
    node = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[1]]
    metrics = store.json("evaluations", node.evaluation, "record.json")["metrics"]
    assert metrics["pool/recall"] > 0.95 and metrics["pool/trained_real_share"] > 0.9
    # P(z > 4) is below 0.002 for a binomial of up to 31 tokens, so of 64 more than 3 is beyond 1 in 10,000
    assert metrics["pool/false_positive_rate"] <= 3 / 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner.sample.watermark": {"gamma": 1e-4}}, "of 300 tokens is 0; some tokens must be green"),
        ({"learner.sample.watermark": {"gamma": 0}}, "learner.sample.watermark.gamma: found 0"),
        ({"learner.sample.watermark": {"gamma": 0.999}}, "of 300 tokens is 300; some tokens must be green"),
        (
            {"learner.sample.watermark": {"context": 8}, "data.block_size": 8},
            "learner.sample.watermark.context: found 8, and examples have up to 8 tokens",
        ),
        (
            {
                "regime": {
                    "kind": "stream",
                    "synthetic_ratio": 0.5,
                    "pool": 1.0,
                    "source": {"corpus": "python-docs"},
                },
                "filters": [{"kind": "watermark", "gamma": 0.001}],
            },
            "filters.0.gamma: 0.001 of 300 tokens is 0; some tokens must be green, and some not",
        ),
        (
            {"learner.sample.watermark": {"gamma": 0.5}, "filters": [{"kind": "watermark"}]},
            "watermark looks for gamma 0.25, learner.sample.watermark writes 0.5",
        ),
        ({"filters": [{"kind": "watermark"}]}, "learner.sample.watermark has marked, and that is not set"),
        ({"learner.train.synthetic_weight": 0}, "no training example is real: nothing would be learned"),
        (
            {"learner.train.synthetic_weight": 0, "regime": {"kind": "replace_grown"}},
            "in replace_grown no training example is real",
        ),
        (
            {
                "learner.train.synthetic_weight": 0,
                "regime": {"kind": "stream", "synthetic_ratio": 1.0},
            },
            "in stream with regime.synthetic_ratio 1 no training example is real",
        ),
        (
            {
                "learner.train.synthetic_weight": 0,
                "regime": {"kind": "fresh_real", "synthetic_ratio": 1.0},
            },
            "in fresh_real with regime.synthetic_ratio 1 no training example is real",
        ),
        ({"learner.later": {"synthetic_weight": 0}}, "learner.later.synthetic_weight: found 0"),
        ({"learner.train.synthetic_weight": -1}, "learner.train.synthetic_weight"),
        ({"learner.train.truncate": 1}, "learner.train.truncate: found 1"),
        ({"learner.train.anchor": {"weight": 2}}, "with loss: smoothing it is a share: at most 1"),
        ({"learner.train.anchor": {"weight": -1}}, "learner.train.anchor.weight: found -1"),
        ({"learner.train.anchor": {"loss": "kl"}}, "learner.train.anchor.weight"),
        (
            {"learner.train": {"anchor": {"weight": 0.1}, "truncate": 0.9}},
            "learner.train.anchor: does not go with truncate",
        ),
        (
            {"learner.train.anchor": {"weight": 0.1, "reference": "previous"}},
            "learner.train.anchor.reference: previous needs learner.init: previous",
        ),
        (
            {"learner.train.anchor": {"weight": 0.1}, "learner.later": {"anchor": None}},
            "so no generation is left that learner.train.anchor is of",
        ),
        ({"learner.train.merge": 0.5}, "merges with the weights before and needs init: previous"),
        (
            {
                "regime": {"kind": "stream", "synthetic_ratio": 0.5},
                "filters": [{"kind": "detector", "examples": 10}],
                "learner.sample": {"num_beams": 2, "prompt": "real_prefix"},
            },
            "stream with synthetic_ratio x pool up to 1 and no detector",
        ),
        ({"learner.sample.min_p": 1}, "learner.sample.min_p: found 1"),
    ],
)  # fmt: skip
def test_bad_input(make_config: Make, tmp_path: Any, changes: dict[str, Any], message: str) -> None:
    from chains import open_prepared

    from harness.errors import ConfigError

    with pytest.raises((ConfigError, DataError)) as error:
        open_prepared(make_config(merged(TEXT, changes)), tmp_path / "root")
    assert message in str(error.value)
