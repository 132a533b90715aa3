"""Selection: the examples of a pool that score highest or lowest, or that differ most from one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.filters import DiverseFilter, SelectFilter
from harness.components.regimes import synthetic_count
from harness.curation.filters import SCORES
from harness.metrics.lexical import ngrams
from harness.records import Examples
from harness.registry import Known

Array = npt.NDArray[np.float64]
RANKS = (1, 10, 100, 1000)
"""Last ranks of the bands of a rank histogram but the last one."""


def select(section: SelectFilter, examples: Examples, known: Known) -> npt.NDArray[np.bool_]:
    """The share ``keep`` of the examples that score highest, or lowest; of equal ones those that came first.

    With ``at_least`` those whose score is at least that, or at most. With probability ``error`` an example is
    judged by chance instead, and passes with probability ``keep``, or the share that passes otherwise.

    Args:
        section: The filter.
        examples: The pool, as earlier filters have left it.
        known: Whose real examples the reference is.

    Returns:
        Shape [num_examples].
    """
    scores, share = _scores(section, examples, known), section.keep
    if share is None:
        assert section.at_least is not None
        away = scores - section.at_least
        kept = np.asarray(away >= 0 if section.choose == "highest" else away <= 0)  # NaN is neither
        share = float(kept.mean()) if len(kept) else 0.0
    else:
        signed = scores * (-1 if section.choose == "highest" else 1)
        order = np.argsort(np.nan_to_num(signed, nan=math.inf), kind="stable")  # what has no score comes last
        kept = np.zeros(len(examples), dtype=bool)
        kept[order[: synthetic_count(share, len(examples))]] = True
    by_chance = known.uniform < section.error
    return np.where(by_chance, known.uniform < section.error * share, kept)


def _scores(section: SelectFilter, examples: Examples, known: Known) -> Array:
    if section.score == "likelihood":
        assert section.reference is not None
        reference = known.real.real(known.seed, section.reference)
        found = _likelihood(reference, section.bias, whole=section.keep is None)(examples)
    elif section.score == "entropy":
        found = entropies(examples)
    else:
        found = SCORES[section.score](examples, known.real)
    return found


def _likelihood(reference: Examples, bias: float, whole: bool) -> Callable[[Examples], Array]:
    """What a model of the reference says of examples: mean log-likelihood of a token, or log density."""
    if np.issubdtype(reference.values.dtype, np.integer):
        return BigramModel(reference).mean_log_likelihood
    return _normal(reference.values, bias, whole)


def _normal(reference: Array, bias: float, whole: bool) -> Callable[[Examples], Array]:
    """Log density of the normal distribution with the moments of a reference; up to a constant, or ``whole``.

    Its mean is off by ``bias`` standard deviations in every coordinate; its covariance (maximum likelihood)
    has 1e-6 of its mean variance added, and 1e-12, so that few or equal examples have a density.
    """
    mean, spread = reference.mean(axis=0), reference.std(axis=0)
    covariance = np.atleast_2d(np.cov(reference, rowvar=False, bias=True))
    floor = 1e-6 * np.trace(covariance) / len(covariance) + 1e-12
    covariance = covariance + floor * np.eye(len(covariance))
    inverse, centre = np.linalg.inv(covariance), mean + bias * spread
    peak = -0.5 * (len(covariance) * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1])

    def density(examples: Examples) -> Array:
        away = examples.values - centre
        found = np.asarray(-0.5 * np.einsum("ij,jk,ik->i", away, inverse, away))
        return found + peak if whole else found

    return density


class BigramModel:
    """A bigram model of a reference, interpolated with its unigrams (Witten and Bell 1991).

    P(w | v) = (c(v, w) + t(v) P(w)) / (c(v) + t(v)) with t(v) the distinct tokens seen behind v, and P(w) =
    (c(w) + 1) / (c + V) over the V token ids up to the largest that it is asked about.
    """

    def __init__(self, reference: Examples) -> None:
        """Count.

        Args:
            reference: Token ids.
        """
        rows = reference.rows()
        self.unigrams = np.bincount(np.concatenate(rows)).astype(np.float64)
        before = np.concatenate([row[:-1] for row in rows]).astype(np.int64)
        behind = np.concatenate([row[1:] for row in rows]).astype(np.int64)
        self._codes, self._counts = np.unique(before << 32 | behind, return_counts=True)
        self._histories = np.bincount(before, minlength=len(self.unigrams)).astype(np.float64)
        self._followers = np.bincount(self._codes >> 32, minlength=len(self.unigrams)).astype(np.float64)

    def mean_log_likelihood(self, examples: Examples) -> Array:
        """Mean log-probability of a token given the one before, nats; NaN for an example of one token.

        Args:
            examples: Token ids.

        Returns:
            Shape [num_examples].
        """
        size = max(len(self.unigrams), int(examples.values.max(initial=0)) + 1)
        shares = self._distribution(size)
        found = np.full(len(examples), np.nan)
        for place, row in enumerate(examples.rows()):
            if len(row) > 1:
                found[place] = np.log(shares(row[:-1].astype(np.int64), row[1:].astype(np.int64))).mean()
        return found

    def _padded(self, size: int) -> list[Array]:
        """Of each token id: how often it stands, how often before another, and before how many others."""
        found = (self.unigrams, self._histories, self._followers)
        return [np.pad(counts, (0, size - len(counts))) for counts in found]

    def _together(self, codes: npt.NDArray[np.int64]) -> Array:
        """How often pairs stand in the reference."""
        if not len(self._codes):
            return np.zeros(len(codes))
        at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[at] == codes, self._counts[at], 0)

    def _distribution(self, size: int) -> Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Array]:
        """P(behind | before) over so many token ids, of arrays of pairs."""
        counts, histories, followers = self._padded(size)
        alone = (counts + 1) / (counts.sum() + size)

        def shares(before: npt.NDArray[np.int64], behind: npt.NDArray[np.int64]) -> Array:
            together = self._together(before << 32 | behind)
            unseen = histories[before] == 0
            weight = np.where(unseen, 1.0, followers[before])
            found = (together + weight * alone[behind]) / np.where(unseen, 1.0, histories[before] + weight)
            return np.asarray(found)

        return shares

    def _ranks(self, codes: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
        """Rank of each pair's second token among so many behind the first, from 1; equal ones share the best.

        P(w | v) x (c(v) + t(v)) x (c + V) = c(v, w) (c + V) + t(v) (c(w) + 1) is a whole number, so ties are
        exact. All tokens are compared as if none were a follower of v, which sorted unigrams answer, and then
        the followers as they are.

        Args:
            codes: Pairs, v << 32 | w, ascending.
            size: V.
        """
        counts, histories, followers = (part.astype(np.int64) for part in self._padded(size))
        before, behind = codes >> 32, codes & 0xFFFFFFFF
        alone, total = counts + 1, int(counts.sum()) + size
        weight = np.where(histories == 0, 1, followers)
        score = self._together(codes).astype(np.int64) * total + weight[before] * alone[behind]
        above = size - np.searchsorted(np.sort(alone), score // weight[before], side="right")
        contexts, starts = np.unique(before, return_index=True)
        known = np.searchsorted(self._codes, np.stack([contexts, contexts + 1]) << 32)
        for context, start, end, first, last in zip(
            contexts, starts, [*starts[1:], len(codes)], *known, strict=True
        ):
            if first < last:
                unlinked = weight[context] * alone[self._codes[first:last] & 0xFFFFFFFF]
                linked = unlinked + self._counts[first:last] * total
                for sign, values in ((1, linked), (-1, unlinked)):
                    found = np.searchsorted(np.sort(values), score[start:end], side="right")
                    above[start:end] += sign * (last - first - found)
        return np.asarray(above + 1)

    def features(self, examples: Examples, size: int) -> Array:
        """What the model says of each example's tokens but the first, which depends on that example alone.

        The mean of their negative log-likelihood (nats), its variance, and the shares of tokens that rank
        first, up to 10, to 100, to 1,000 and behind (rank histograms: Gehrmann and others 2019, arXiv
        1906.04043); NaN for an example of one token.

        Args:
            examples: Token ids.
            size: How many token ids there are.

        Returns:
            Shape [num_examples, 7].
        """
        rows = [row.astype(np.int64) for row in examples.rows()]
        lengths = np.array([max(len(row) - 1, 0) for row in rows], dtype=np.int64)
        place = np.repeat(np.arange(len(rows)), lengths)
        pairs = [row[:-1] << 32 | row[1:] for row in rows]
        codes, which = np.unique(np.concatenate([*pairs, np.zeros(0, np.int64)]), return_inverse=True)
        loss = -np.log(self._distribution(size)(codes >> 32, codes & 0xFFFFFFFF))[which]
        band = np.searchsorted(RANKS, self._ranks(codes, size))[which]

        def means(of: npt.NDArray[Any]) -> Array:
            summed = np.bincount(place, weights=of, minlength=len(rows))
            return np.asarray(summed / np.where(lengths == 0, np.nan, lengths))

        mean = means(loss)
        bands = [means(band == number) for number in range(len(RANKS) + 1)]
        return np.stack([mean, means((loss - mean[place]) ** 2), *bands], axis=1)


def entropies(examples: Examples) -> Array:
    """Plug-in entropy of the tokens of each example, nats; shape [num_examples]."""
    found = np.zeros(len(examples))
    for place, row in enumerate(examples.rows()):
        _, counts = np.unique(row, return_counts=True)
        shares = counts / max(counts.sum(), 1)
        found[place] = -(shares * np.log(shares)).sum()
    return found


def diverse(section: DiverseFilter, examples: Examples, known: Known) -> npt.NDArray[np.bool_]:
    """The share ``keep`` of the examples that lie farthest from one another.

    Farthest-point traversal (Gonzalez 1985, Theoretical Computer Science 38:293): the first example is kept,
    then again and again the one whose distance to the nearest that is kept is largest; of equal ones the
    first. Distances of text are 1 - Jaccard similarity of sets of n-grams, those of numbers Euclidean.

    Args:
        section: The filter.
        examples: The pool, as earlier filters have left it.
        known: Not used.

    Returns:
        Shape [num_examples].
    """
    kept = np.zeros(len(examples), dtype=bool)
    count = synthetic_count(section.keep, len(examples))
    if not count:
        return kept
    tokens = np.issubdtype(examples.values.dtype, np.integer)
    distance = _jaccard(examples, section.n) if tokens else _euclidean(examples.values)
    nearest, place = np.full(len(examples), math.inf), 0
    for _ in range(count):
        kept[place] = True
        nearest = np.minimum(nearest, distance(place))
        nearest[place] = -math.inf
        place = int(np.argmax(nearest))
    return kept


def _euclidean(values: Array) -> Callable[[int], Array]:
    return lambda place: np.asarray(np.linalg.norm(values - values[place], axis=1))


def _jaccard(examples: Examples, n: int) -> Callable[[int], Array]:
    """Distances from one example to all, over their sets of n-grams."""
    from scipy.sparse import csr_array

    codes, rows = ngrams(examples, n)
    distinct, index = np.unique(codes, return_inverse=True)
    pairs = np.unique(np.stack([rows, index]), axis=1)
    shape = (len(examples), max(len(distinct), 1))
    sets: Any = csr_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=shape)
    sizes = np.asarray(sets.sum(axis=1)).reshape(-1)

    def distance(place: int) -> Array:
        shared = np.asarray((sets @ sets[[place]].T).todense()).reshape(-1)
        union = sizes + sizes[place] - shared
        return np.where(union > 0, 1 - shared / np.maximum(union, 1), 0.0)

    return distance
