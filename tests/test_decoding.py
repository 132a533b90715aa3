"""Beam search, penalties, the end of text and the masked loss, against transformers and against their
definitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from harness.config.schema import Model, Sample
from harness.records import Examples

torch = pytest.importorskip("torch")

from harness.learners.language_model import drawing
from harness.learners.language_model import model as models
from harness.learners.language_model.decoding import Adjustment
from harness.learners.language_model.drawing import distribution
from harness.learners.language_model.sampling import Sampler, draw_batch
from harness.learners.language_model.scoring import sequence_nll, with_bos

EOS, VOCAB, WIDTH = 5, 40, 9


@pytest.fixture(scope="module", params=["gpt2", "llama", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    """A model that has opinions: at initialisation everything is nearly uniform."""
    section = Model(architecture=request.param, num_layers=2, width=16, num_heads=2, context=48)
    made = models.new_model(section, VOCAB, 48, 0, EOS, seed=1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6.0)
    made.generation_config.pad_token_id = EOS
    return made.eval()


def sampler(model: Any, **settings: Any) -> Sampler:
    section = Sample(**{"prompt": "real_prefix", "prompt_tokens": 4, "forbid_eos": True, **settings})
    return Sampler(model, section, None, EOS)


PROMPTS = np.random.default_rng(0).integers(1, VOCAB, (12, 4))
UNREAD = np.zeros((12, WIDTH))


def generated(model: Any, prompts: Any, length: int = WIDTH, **settings: Any) -> Any:
    with torch.inference_mode():
        tokens = torch.from_numpy(prompts)
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=length,
            min_new_tokens=length,
            bos_token_id=0,
            eos_token_id=EOS,
            pad_token_id=EOS,
            **settings,
        )
    return found[:, prompts.shape[1] :].numpy()


@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (5, 1.0), (5, 3.0), (5, 0.7)])
def test_a_beam_search_is_that_of_transformers(model: Any, beams: int, penalty: float) -> None:
    theirs = generated(model, PROMPTS, num_beams=beams, repetition_penalty=penalty)
    ours = sampler(model, num_beams=beams, repetition_penalty=penalty).draw(PROMPTS, WIDTH, UNREAD)
    assert (ours.values == theirs).all() and (ours.lengths == WIDTH).all()
    assert len({row.tobytes() for row in theirs}) > 4, "the prompts matter, or the test says little"
    greedy = generated(model, PROMPTS, num_beams=1, repetition_penalty=penalty)
    assert (theirs != greedy).any(), "the search finds what greedy decoding does not"


def test_beams_as_wide_as_all_find_the_likeliest(model: Any) -> None:
    """With vocab ** (length - 1) beams nothing is ever cut, so the search is exhaustive: 40 beams for two
    tokens."""
    found = sampler(model, num_beams=VOCAB, forbid_eos=False).draw(PROMPTS[:3], 2, UNREAD)
    for prompt, row in zip(PROMPTS[:3], found.values, strict=True):
        pairs = np.array(list(itertools.product(range(VOCAB), repeat=2)))
        whole = np.concatenate([np.repeat(prompt[None], len(pairs), 0), pairs], axis=1)
        with torch.inference_mode():
            inputs, targets = with_bos(
                Examples.full(whole.astype(np.int32)), None, torch.device("cpu"), masked=4
            )
            nll = sequence_nll(model(input_ids=inputs).logits, targets)
        assert tuple(row) == tuple(pairs[int(nll.argmin())])


def test_a_beam_is_the_same_whatever_else_is_sampled(model: Any) -> None:
    found = sampler(model, num_beams=3)
    prompts = Examples.full(PROMPTS.astype(np.int32))

    def batch(start: int, seed: int = 7) -> np.ndarray:
        return draw_batch(found, prompts, 4, WIDTH, seed=seed, generation=2, start=start, size=8).values

    first = batch(8)
    batch(0)
    torch.rand(5)
    assert (batch(8) == first).all() and (batch(8, seed=8) == first).all(), "nothing is drawn"
    assert (batch(12)[4:] == batch(4)[:4]).all(), "examples 16..19 continue the prompts of examples 4..7"


@pytest.mark.parametrize("penalty", [1.3, 0.6])
@pytest.mark.parametrize("prompt_counts", [True, False])
def test_the_penalty_is_that_of_transformers(penalty: float, prompt_counts: bool) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(3)
    context = torch.from_numpy(rng.integers(0, 12, (6, 5)))
    adjust = Adjustment(Sample(repetition_penalty=penalty, penalize_prompt=prompt_counts), 0, context)
    theirs = RepetitionPenaltyLogitsProcessor(penalty, None if prompt_counts else 5)
    sequence = context
    for position in range(6):
        scores = torch.from_numpy(rng.normal(size=(6, 12)).astype(np.float32))
        assert torch.equal(adjust(scores, position), theirs(sequence, scores))
        choice = torch.from_numpy(rng.integers(0, 12, 6))
        adjust.add(choice)
        sequence = torch.cat([sequence, choice[:, None]], dim=1)
        rows = torch.from_numpy(rng.integers(0, 6, 6))
        adjust.reorder(rows)
        sequence = sequence[rows]


def test_penalised_drawing_at_temperature_0_is_greedy(model: Any) -> None:
    theirs = generated(model, PROMPTS, num_beams=1, repetition_penalty=1.5)
    ours = sampler(model, repetition_penalty=1.5, temperature=1e-4).draw(
        PROMPTS, WIDTH, np.full((12, WIDTH), 0.5)
    )
    assert (ours.values == theirs).all()


def test_without_adjustments_scores_stay_as_they_are() -> None:
    scores = torch.zeros((2, 3), dtype=torch.bfloat16)
    assert Adjustment(Sample(), 0, torch.zeros((2, 1), dtype=torch.int64))(scores, 0) is scores


def test_the_end_of_text_is_held_back_and_then_comes(model: Any) -> None:
    uniform = np.random.default_rng(2).random((256, 30))
    prompts = np.repeat(PROMPTS[:1], 256, axis=0)
    settings = {"temperature": 3.0, "length": "natural", "forbid_eos": False}
    free = sampler(model, **settings).draw(prompts, 30, uniform)
    held = sampler(model, min_new_tokens=6, **settings).draw(prompts, 30, uniform)
    assert free.lengths.min() <= 6 < held.lengths.min() == 7, (
        "the seventh token is the first that may end an example"
    )
    block = sampler(model, temperature=3.0, forbid_eos=False).draw(prompts, 30, uniform)
    never = sampler(model, temperature=3.0, forbid_eos=True).draw(prompts, 30, uniform)
    assert (block.lengths == 30).all() and (block.values == EOS).any() and not (never.values == EOS).any()


@pytest.mark.parametrize("settings", [{"min_p": 0.1}, {"typical_p": 0.4}, {"top_k": 20, "typical_p": 0.7}])
def test_cuts_are_those_of_transformers(model: Any, settings: dict[str, float]) -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TypicalLogitsWarper

    scores = torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    warpers = {"top_k": TopKLogitsWarper, "min_p": MinPLogitsWarper, "typical_p": TypicalLogitsWarper}
    theirs = scores
    for name, value in settings.items():
        theirs = warpers[name](value)(None, theirs)
    ours = distribution(scores, Sample(**settings))
    assert ((ours > 0) == torch.isfinite(theirs)).all() and (ours == 0).any()
    kept = ours / ours.sum(dim=-1, keepdim=True)
    assert torch.allclose(kept, torch.softmax(theirs.double(), dim=-1), atol=1e-6)


def test_typical_tokens_are_those_of_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token in order of distance, of equal ones the first; ties, cut tails and sums that meet the
    mass."""
    seen, nearest = [], drawing._nearest

    def spy(*asked: Any) -> Any:
        seen.append(nearest(*asked))
        return seen[-1]

    monkeypatch.setattr(drawing, "_nearest", spy)
    noise = torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(3))
    least = noise.topk(9, dim=-1).values[:, -1:]
    for scores in (noise, 9 * noise, noise.round(), 0 * noise, noise.masked_fill(noise < least, -torch.inf)):
        for mass in (0.01, 0.25, 0.5, 0.9, 1 - 1e-10):
            found = distribution(scores, Sample(typical_p=mass))
            for row, kept in zip(torch.softmax(scores.double(), dim=-1).numpy(), found.numpy(), strict=True):
                share = row / row.sum()
                with np.errstate(divide="ignore"):
                    surprise = -np.log(share)
                expected = (share * np.where(share > 0, surprise, 0)).sum()
                total, order = 0.0, sorted(range(VOCAB), key=lambda i: (abs(surprise[i] - expected), i))
                for token in order:
                    if abs(total - mass) > 1e-12:  # there rounding decides
                        assert kept[token] == (row[token] if total < mass else 0)
                    total += share[token]
    ways = [found is None for found in seen]
    assert any(ways) and not all(ways), "with and without a sort of all"
    diverged = distribution(noise.fill_(torch.nan), Sample(typical_p=0.9))
    assert diverged.isnan().all(), "what is no number is left to those who look for it"


@pytest.mark.parametrize("truncate", [0.3, 0.9, 1 - 1e-9])
def test_sure_tokens_are_not_learned(truncate: float) -> None:
    """Loss and gradient are those of the tokens that have at most this probability."""
    logits = (torch.randn(4, 6, 7, generator=torch.Generator().manual_seed(0)) * 4).requires_grad_()
    targets = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(1))
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    learned = (torch.exp(-nll) <= truncate).view(4, 6)
    found = sequence_nll(logits, targets, truncate)
    assert torch.allclose(found, (nll.view(4, 6) * learned).sum(dim=1))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert (gradient[~learned] == 0).all() and (gradient[learned].abs().sum(dim=-1) > 0).all()
    assert learned.any() and (truncate > 0.99 or not learned.all())


@pytest.mark.parametrize("few", [10**9, 0])
@pytest.mark.parametrize("loss", ["smoothing", "kl"])
def test_the_loss_towards_a_reference(loss: Any, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient against sums over the vocabulary in fp64, all tokens at once and some at a time."""
    from harness.components.objectives import Anchor
    from harness.learners.language_model import scoring

    monkeypatch.setattr(scoring, "FEW", few)
    monkeypatch.setattr(scoring, "ENTRIES", dict.fromkeys(scoring.ENTRIES, 5 * 7))
    made = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 7, generator=made).requires_grad_()
    reference = torch.randn(4, 6, 7, generator=made)
    targets = torch.randint(0, 7, (4, 6), generator=made)
    targets[:, 4:] = scoring.IGNORED
    p, q = logits.double().softmax(-1), reference.double().softmax(-1)
    one_hot = torch.nn.functional.one_hot(targets.clamp(min=0), 7).double()
    if loss == "smoothing":
        wanted = -((0.7 * one_hot + 0.3 * q) * p.log()).sum(-1)
    else:
        wanted = -(one_hot * p.log()).sum(-1) + 0.3 * (p * (p / q).log()).sum(-1)
    wanted = (wanted * (targets >= 0)).sum(dim=1)
    found = sequence_nll(logits, targets, None, Anchor(loss=loss, weight=0.3), reference)
    assert torch.allclose(found.double(), wanted, rtol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in (found, wanted)]
    assert torch.allclose(*gradients, atol=1e-5)
    assert (gradients[0][:, 4:] == 0).all()


@pytest.mark.parametrize(("real", "synthetic"), [(100, 100), (400, 100), (50, 100)])
def test_golden_weights_make_the_error_of_a_mean_least(real: int, synthetic: int) -> None:
    """Statement of He, Xu and Cheng: the error becomes w* s2 / n_r, computed here by their recursion."""
    from harness.config.schema import Train
    from harness.learners.language_model.schedule import origin_weights
    from harness.records import REAL

    origin = np.repeat(np.array([REAL, 0], dtype=np.int32), [real, synthetic])
    weights = origin_weights(Train(synthetic_weight="golden"), origin)
    assert weights is not None and weights.mean() == pytest.approx(1)
    share = weights[:real].sum() / weights.sum()

    def error(w: float) -> float:
        return (w**2 / real + (1 - w) ** 2 / synthetic) / (1 - (1 - w) ** 2)

    assert error(share) == pytest.approx(share / real)
    assert all(error(share) <= error(w) for w in np.linspace(0.01, 1, 200))
    assert origin_weights(Train(), origin) is None
    plain = origin_weights(Train(synthetic_weight=0.5), origin)
    assert plain is not None and plain[0] == pytest.approx(2 * plain[-1])


def test_a_prompt_is_masked_from_the_loss(model: Any) -> None:
    """Masked tokens have no loss and no gradient of their own, and the others' loss stays as it was."""
    tokens = np.random.default_rng(4).integers(1, VOCAB, (3, 10)).astype(np.int32)
    examples = Examples(tokens, np.array([10, 7, 3], dtype=np.int32))
    for bos in (0, None):
        inputs, targets = with_bos(examples, bos, torch.device("cpu"), masked=4)
        all_inputs, all_targets = with_bos(examples, bos, torch.device("cpu"))
        assert torch.equal(inputs, all_inputs)
        first = 4 if bos is not None else 3  # without a token in front, the first token is no target anyway
        assert (targets[:, :first] == -100).all() and torch.equal(targets[:, first:], all_targets[:, first:])
        assert (targets != -100).sum(dim=1).tolist() == [6, 3, 0]
