"""Metrics against values that follow from their definitions."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from harness.config.schema import DeduplicateFilter, GaussianData, RepetitionFilter
from harness.curation import Judge, accepted
from harness.data import make_truth
from harness.metrics import lexical, likelihood
from harness.metrics.analytic import gaussian_metrics
from harness.metrics.bigram import bigram_nll
from harness.metrics.catalogue import METRICS, about, drawn
from harness.records import Examples, status_of

NOBODY = Judge(make_truth(GaussianData(source="gaussian")), 0, 0)
rows = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=8)


def examples(lists: list[list[int]]) -> Examples:
    values = np.zeros((len(lists), max(map(len, lists))), dtype=np.int32)
    for row, items in enumerate(lists):
        values[row, : len(items)] = items
    return Examples(values, np.array([len(items) for items in lists], dtype=np.int32))


def grams(items: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@given(rows, st.integers(1, 5))
def test_ngram_metrics_are_those_of_a_plain_count(lists: list[list[int]], n: int) -> None:
    found = examples(lists)
    everything = [gram for items in lists for gram in grams(items, n)]
    counts = Counter(everything)
    if everything:
        assert lexical.distinct(found, n) == pytest.approx(len(counts) / len(everything))
        expected = -sum(c / len(everything) * math.log(c / len(everything)) for c in counts.values())
        assert lexical.entropy(found, n) == pytest.approx(expected, abs=1e-12)
    else:
        assert math.isnan(lexical.distinct(found, n)) and math.isnan(lexical.entropy(found, n))
    for items, share in zip(lists, lexical.repetition_shares(found, n), strict=True):
        own = grams(items, n)
        assert math.isnan(share) if not own else share == pytest.approx(1 - len(set(own)) / len(own))


@given(rows, st.integers(1, 40))
def test_the_token_budget_reads_the_first_tokens(lists: list[list[int]], budget: int) -> None:
    clipped = lexical.clip(examples(lists), budget)
    flat = [t for items in lists for t in items][:budget]
    assert [int(t) for row, n in zip(clipped.values, clipped.lengths, strict=True) for t in row[:n]] == flat


def test_large_vocabularies_do_not_overflow() -> None:
    values = np.array([[2**31 - 1, 2**31 - 2, 2**31 - 3, 2**31 - 1, 2**31 - 2, 2**31 - 3, 5]], dtype=np.int32)
    assert lexical.distinct(Examples.full(values), 3) == pytest.approx(4 / 5)


def test_tail_bands_and_coverage_on_a_known_text() -> None:
    real = np.array([50, 30, 10, 6, 4, 0])
    assert lexical.tail_tokens(real).tolist() == [False, False, False, True, True, True]
    assert lexical.band_of(real, 5).tolist() == [0, 2, 4, 4, 4, 4]
    same = examples([[0] * 50 + [1] * 30 + [2] * 10 + [3] * 6 + [4] * 4])
    metrics = lexical.lexical_metrics(same, real, 100)
    assert metrics["text/tail_mass"] == pytest.approx(0.1)
    assert metrics["text/vocab_coverage"] == 1.0
    assert metrics["text/band_1"] == pytest.approx(1.0) and metrics["text/band_5"] == pytest.approx(1.0)
    collapsed = lexical.lexical_metrics(examples([[0] * 100]), real, 100)
    assert collapsed["text/tail_mass"] == 0.0 and collapsed["text/vocab_coverage"] == pytest.approx(1 / 5)
    assert collapsed["text/band_1"] == pytest.approx(2.0) and collapsed["text/band_5"] == 0.0
    few = lexical.lexical_metrics(same, np.array([60, 30, 10, 0, 0]), 100)
    bands = [name for name in few if name.startswith("text/band_")]
    assert bands == ["text/band_1", "text/band_4", "text/band_5"], "the first token has three of five bands"


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=8))
def test_of_the_real_text_itself_all_is_a_number(lists: list[list[int]]) -> None:
    """What would be none of the data themselves is no sign of collapse, and left out; what has collapsed to
    nothing has none where the data have one."""
    real = examples(lists)
    counts, longest = lexical.token_counts(real, 6), int(real.lengths.max())
    metrics = lexical.lexical_metrics(real, counts, longest)
    assert np.isfinite(list(metrics.values())).all()
    assert ("text/rep_4" in metrics, "text/distinct_2" in metrics) == (longest >= 4, longest >= 2)
    empty = lexical.lexical_metrics(examples([[0]]), counts, longest)
    assert empty.keys() == metrics.keys()
    assert status_of("ok", empty) == ("degenerate" if longest >= 2 else "ok")


@given(rows, rows)
def test_copies_and_duplicates(written: list[list[int]], training: list[list[int]]) -> None:
    metrics = lexical.copying_metrics(examples(written), examples(training))
    trained = {tuple(items) for items in training}
    assert metrics["text/copy_share"] == pytest.approx(
        sum(tuple(w) in trained for w in written) / len(written)
    )
    assert metrics["text/duplicate_share"] == pytest.approx(
        1 - len({tuple(w) for w in written}) / len(written)
    )


def test_test_nll_weights_tokens_and_not_sequences() -> None:
    nll, count = np.array([10.0, 1.0]), np.array([10, 100])
    metrics = likelihood.test_metrics(nll, count, text_bytes=220, batch=1)
    assert metrics["test/nll"] == pytest.approx(0.1)
    assert metrics["test/perplexity"] == pytest.approx(math.exp(0.1))
    assert metrics["test/bits_per_byte"] == pytest.approx(11 / math.log(2) / 220)
    endless = likelihood.test_metrics(np.array([1e6]), np.array([1]), 1, 8)
    assert {value for name, value in endless.items() if "perplexity" in name} == {math.inf}


def test_three_ways_to_average_a_perplexity() -> None:
    """By hand: batches of two, the last one of one sequence, which counts as much as a full one."""
    nll, count = np.array([10.0, 1.0, 3.0]), np.array([10, 100, 1])
    metrics = likelihood.test_metrics(nll, count, text_bytes=1, batch=2)
    assert metrics["test/perplexity"] == pytest.approx(math.exp(14 / 111))
    assert metrics["test/perplexity_batch_mean"] == pytest.approx(math.exp((11 / 110 + 3 / 1) / 2))
    assert metrics["test/perplexity_sequence_mean"] == pytest.approx(
        (math.exp(1) + math.exp(0.01) + math.exp(3)) / 3
    )
    whole = likelihood.test_metrics(nll, count, text_bytes=1, batch=3)
    assert whole["test/perplexity_batch_mean"] == pytest.approx(whole["test/perplexity"]), (
        "one batch of all is the token's mean"
    )
    equal = likelihood.test_metrics(np.full(6, 20.0), np.full(6, 10), text_bytes=1, batch=4)
    assert [value for name, value in equal.items() if "perplexity" in name] == pytest.approx(
        [math.exp(2)] * 3
    )


def test_gen0_quantiles_are_per_sequence() -> None:
    nll = np.concatenate([np.arange(1, 102, dtype=float), [7.0]])
    metrics = likelihood.gen0_metrics(nll, np.concatenate([np.ones(101, int), [0]]))
    assert metrics["gen0/nll_mean"] == pytest.approx(51) and metrics["gen0/nll_p50"] == 51
    assert (metrics["gen0/nll_p05"], metrics["gen0/nll_p95"]) == (6, 96)


def test_the_bigram_model_reaches_the_entropy_rate() -> None:
    rng = np.random.default_rng(0)
    stay = 0.9
    flips = rng.random((4000, 32)) > stay
    blocks = (1 + np.cumsum(flips, axis=1) % 2).astype(np.int32)
    nll = bigram_nll(blocks[:3000], blocks[3000:3500], blocks[3500:], bos=0, vocab_size=3)
    rate = -(stay * math.log(stay) + (1 - stay) * math.log(1 - stay))
    # All 32 tokens of a block follow the same rule (the first as if after a 2). Standard error of the mean
    # over 16,000: 0.005.
    assert nll == pytest.approx(rate, abs=0.02)


def test_gaussian_metrics() -> None:
    """N((1, 2), diag(2, 8)) against N(0, 2 I): every number by hand."""
    covariance = np.diag([2.0, 8.0])
    metrics = {
        k: v[0]
        for k, v in gaussian_metrics(
            np.array([[1.0, 2.0]]), covariance[None], np.log([16.0]), 0.0, 2.0
        ).items()
    }
    assert metrics["gaussian/mean_sq_error"] == 5.0
    assert metrics["gaussian/covariance_error"] == 6.0
    assert metrics["gaussian/trace_ratio"] == pytest.approx(10 / 4)
    assert metrics["gaussian/det_ratio"] == pytest.approx(16 / 4)
    assert metrics["gaussian/log_variance"] == pytest.approx(math.log(5))
    assert metrics["gaussian/wasserstein_2"] == pytest.approx(
        math.sqrt(5 + (math.sqrt(8) - math.sqrt(2)) ** 2)
    )
    assert metrics["gaussian/kl"] == pytest.approx(0.5 * ((10 + 5) / 2 - 2 - math.log(16 / 4)))
    nothing = gaussian_metrics(np.zeros((1, 1)), np.zeros((1, 1, 1)), np.array([-np.inf]), 0.0, 1.0)
    assert nothing["gaussian/log_variance"][0] == -math.inf


@given(rows, rows)
def test_filters_keep_their_verdicts_when_a_corpus_grows(
    first: list[list[int]], more: list[list[int]]
) -> None:
    filters = (DeduplicateFilter(kind="deduplicate"), RepetitionFilter(kind="repetition", n=2, max_share=0.3))
    short, long = examples(first), examples(first + more)
    kept = accepted(filters, long, NOBODY)
    assert accepted(filters, short, NOBODY).tolist() == [i for i in kept.tolist() if i < len(first)]
    texts = [tuple((first + more)[i]) for i in kept]
    assert len(texts) == len(set(texts))
    assert all(
        len(grams(list(t), 2)) == 0 or 1 - len(set(grams(list(t), 2))) / len(grams(list(t), 2)) <= 0.3
        for t in texts
    )


def _tokenizer(kind: str) -> Any:
    """Byte-level, as most published ones; pieces with a byte for what they lack; words."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers import models as kinds

    texts = ["The end is near, said the raven to the fox. "] * 20 + [
        "Съешь ещё этих мягких французских булок, да выпей чаю. "
    ] * 20
    if kind == "bytes":
        made = Tokenizer(kinds.BPE())
        made.pre_tokenizer, made.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|endoftext|>"],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
    elif kind == "pieces":
        made = Tokenizer(kinds.BPE(byte_fallback=True, unk_token="<unk>"))
        made.normalizer = normalizers.Replace(" ", "\u2581")
        made.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special = ["<unk>", "<|endoftext|>"] + [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    else:
        made = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=["[UNK]", "<|endoftext|>"], show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    plain = json.loads(made.to_str())  # published vocabularies have bytes as pieces like any other
    plain["added_tokens"] = [
        token for token in plain["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(plain))


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize(
    "text",
    ["The fox is near the end.", "Ещё булок! 日本語のテキスト 🙂", "naïve café\n\n\tx", " два  пробела "],
)
def test_bytes_are_those_of_the_text_wherever_it_is_cut(kind: str, text: str) -> None:
    from harness.data.token_bytes import token_bytes

    tokenizer = _tokenizer(kind)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    counts, plain = token_bytes(tokenizer)
    assert counts[tokens].sum() == len(text.encode())
    assert counts[tokenizer.token_to_id("<|endoftext|>")] == 0
    for cut in range(len(tokens)):
        parts = tokens[:cut], tokens[cut:]
        assert sum(counts[list(part)].sum() for part in parts if part) == len(text.encode())
    if kind == "bytes":
        assert plain[tokens].all() == text.isascii()


def test_words_count_the_spaces_between_them() -> None:
    from harness.data.token_bytes import token_bytes

    tokenizer = _tokenizer("words")
    tokens = tokenizer.encode("the raven said", add_special_tokens=False).ids
    assert token_bytes(tokenizer)[0][tokens].sum() == len("the raven said") + 1, "a text goes before it"


def test_every_metric_is_described_and_documented() -> None:
    names = {metric.name for metric in METRICS}
    groups = "|".join(sorted({metric.group for metric in METRICS} - {"other", "share"}))
    written: set[str] = set()
    for folder in ("metrics", "learners"):
        for path in (ROOT / "harness" / folder).rglob("*.py"):
            if path.name != "catalogue.py":
                written |= set(re.findall(rf'"((?:{groups})/[a-z0-9_]+)"', path.read_text()))
    assert len(written) > 40 and written <= names
    table = (ROOT / "docs" / "metrics.md").read_text().split("## Homogenisation")[0]
    documented = {name for name in re.findall(r"`([a-z0-9]+/[a-z0-9_<>/]+)`", table)} | {
        "gen0/nll_p05",
        "gen0/nll_p50",
        "gen0/nll_p95",
    }
    assert {name for name in names if "<" not in name} <= documented
    assert all(about(name).label != name for name in documented)


def test_open_names_take_their_part_from_the_column() -> None:
    assert about("other/news/nll").title == "NLL on other real text: news (nats/token)"
    assert about("share/low_end").label == "share of low end" and about("text/band_3").drawn is False
    assert about("nobody/knows").title == "nobody/knows" and about("other//nll").label == "other//nll"
    assert [
        metric.name
        for metric in drawn(["text/rep_4", "seed", "test/nll", "learner.model.preset", "test/perplexity"])
    ] == ["test/perplexity", "test/nll", "text/rep_4"]
