"""Detectors of synthetic examples: logistic regression on what they read of them.

That are counts of n-grams of text, or what a reference model says of its tokens; of numbers, them and their
squares.

They learn from labelled examples of generation 0 and judge what later generations are offered, as who trains
on the web has to: a detector is never younger than what it is to detect.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.filters import DetectorFilter, draws_before
from harness.curation.selection import BigramModel
from harness.ngrams import character_counts, ngram_counts
from harness.proc import one_thread
from harness.records import Examples
from harness.registry import Known
from harness.streams import stream


def detector(section: DetectorFilter, examples: Examples, known: Known) -> npt.NDArray[Any]:
    """Which examples a detector does not take for synthetic, or a weighted draw by its probabilities.

    Args:
        section: The filter.
        examples: Shape [num_examples, width].
        known: With the labelled examples, and how many are to be trained on.

    Returns:
        Truth values, shape [num_examples]; or positions, at most ``known.take`` of them.
    """
    return chosen(section, probabilities(section, examples, known), known)


def calibrated(log_odds: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities whose log odds are divided by a temperature (Guo and others 2017, arXiv 1706.04599)."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds / temperature)))


def chosen(section: Any, synthetic: npt.NDArray[np.float64], known: Known) -> npt.NDArray[Any]:
    """What is kept by the probabilities that examples are synthetic.

    Drawing with weight (1 - p) ** bias, each example at most ``repeats`` times, is the importance resampling
    of Drayson, Yilmaz and Lampos 2025 (arXiv 2502.15654). The draw without replacement takes the largest of
    log weight + Gumbel noise (Efraimidis and Spirakis 2006; Vieira 2014), one such number for each copy. Each
    draw of a kind has noise of its own.

    Args:
        section: A filter with ``use``, ``threshold``, ``bias`` and ``repeats``; its kind names the stream,
            with its place among the draws of the kind from the second one on.
        synthetic: The probabilities, shape [num_examples].
        known: Whose pool it is, and how many are to be trained on.
    """
    if section.use == "threshold":
        return np.asarray(synthetic < section.threshold)
    place = draws_before(known.before)
    name = f"{section.kind}_draw_{place}" if place else f"{section.kind}_draw"
    size = len(synthetic), section.repeats
    noise = stream(known.seed, known.generation, name).gumbel(size=size)
    scores = section.bias * np.log1p(-np.minimum(synthetic, 1 - 1e-12))[:, None] + noise
    best = np.argsort(-scores, axis=None, kind="stable")[: known.take]
    return np.asarray(np.sort(best // section.repeats))


def probabilities(section: DetectorFilter, examples: Examples, known: Known) -> npt.NDArray[np.float64]:
    """The probability that each example is synthetic, were both equally frequent; shape [num_examples]."""
    assert known.labelled is not None
    real, written = known.labelled
    if section.reference is not None:
        train, new = _judged(section.reference, known, examples)
    elif np.issubdtype(examples.values.dtype, np.integer):
        train, new = (
            _counts(section, known, [row.tolist() for part in parts for row in part.rows()])
            for parts in ((real, written), (examples,))
        )
    else:
        train, new = _numbers(real, real, written), _numbers(real, examples)
    model = _learned(train, (len(real), len(written)), section.regularisation)
    if section.reference is not None:  # a product of matrices may round a row by how many there are
        return calibrated((new * model.coef_).sum(axis=1) + model.intercept_, section.temperature)
    if section.temperature != 1.0:
        return calibrated(model.decision_function(new), section.temperature)
    found: npt.NDArray[np.float64] = model.predict_proba(new)[:, 1]
    return found


_fitted: dict[str, Any] = {}
"""What has been learned in this process, by what it was learned from: every generation asks the same one."""
KNOWN = 8
"""How many of these are kept."""


def _learned(train: Any, sizes: tuple[int, int], regularisation: float) -> Any:
    """Logistic regression on so many real and so many synthetic rows; a function of these alone."""
    from sklearn.linear_model import LogisticRegression

    parts = (train,) if isinstance(train, np.ndarray) else (train.data, train.indices, train.indptr)
    digest = hashlib.sha256(repr((sizes, regularisation, train.shape)).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    name = digest.hexdigest()
    if name not in _fitted:
        model = LogisticRegression(C=1 / regularisation, max_iter=1000, class_weight="balanced")
        while len(_fitted) >= KNOWN:
            del _fitted[next(iter(_fitted))]
        # Products of several threads round by their number; and they take longer for this, by much.
        with one_thread():
            _fitted[name] = model.fit(train, np.repeat([0, 1], sizes))
    return _fitted[name]


def _counts(section: DetectorFilter, known: Known, rows: list[list[int]]) -> Any:
    if section.unit == "characters":
        return character_counts(section.ngram, [known.real.decode(row) for row in rows])
    return ngram_counts(section.ngram, rows)


def _judged(reference: int, known: Known, examples: Examples) -> list[npt.NDArray[np.float64]]:
    """What bigrams of a reference say of labelled examples, and of others, in units of the former's spread.

    The reference lies behind the labelled real examples: those it has counted itself would look likelier to
    it than what is real elsewhere. An example of one token looks like the mean of the labelled ones.
    """
    assert known.labelled is not None
    real, written = known.labelled
    counted = known.real.real(known.seed, len(real) + reference).take(slice(len(real), None))
    model, size = BigramModel(counted), len(known.real.counts)
    found = [model.features(part, size) for part in (real, written, examples)]
    train = np.concatenate(found[:2])
    scored = train[np.isfinite(train[:, 0])]
    center, spread = (scored.mean(axis=0), scored.std(axis=0)) if len(scored) else (0.0, np.ones(1))
    scale = np.where(spread > 0, spread, 1)
    return [np.nan_to_num((part - center) / scale, nan=0.0) for part in (train, found[2])]


def _numbers(scale: Examples, *sets: Examples) -> npt.NDArray[np.float64]:
    """Numbers and their squares, in units of the real examples' spread."""
    center, spread = scale.values.mean(axis=0), scale.values.std(axis=0)
    rows = np.concatenate([part.values for part in sets]).astype(np.float64)
    rows = (rows - center) / np.where(spread > 0, spread, 1)
    return np.concatenate([rows, rows**2], axis=1)
