"""The language model learner in this process, one rank, the real DeepSpeed engine on the CPU."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chains import Events, contents, open_prepared, run_all
from conftest import TEXT, Make, harness

from harness.components import LEARNERS
from harness.components.model import resolve_model
from harness.components.presets import preset_names, read_preset
from harness.config.schema import Model, Sample, Train
from harness.errors import LearnerError
from harness.inspection.status import chain_states
from harness.preparation import load_data
from harness.records import EXTERNAL, Examples
from harness.store import Leases, Store
from harness.store.health import examine
from harness.store.store import WEIGHTS

torch = pytest.importorskip("torch")

from harness.learners.language_model import batches, drift, sampling, scoring
from harness.learners.language_model import model as models
from harness.learners.language_model.drawing import choose, distribution
from harness.learners.language_model.learner import LanguageModelLearner
from harness.learners.language_model.sampling import Sampler, draw_batch
from harness.learners.language_model.schedule import Schedule, learning_rate, plan_steps
from harness.learners.language_model.scoring import score
from harness.learners.language_model.sizes import PassSizes, kept_values, memory_per_rank, num_parameters


@pytest.fixture(scope="module")
def tiny() -> Any:
    made = models.new_model(
        Model(architecture="gpt2", num_layers=1, width=16, num_heads=2, context=48), 40, 48, 0, 0, seed=1
    )
    with torch.no_grad():
        for (
            parameter
        ) in made.parameters():  # a model that has opinions: at initialisation everything is nearly uniform
            parameter.mul_(8.0)
    return made.eval()


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    about, model = read_preset(name), resolve_model(Model(preset=name))
    config = models.transformers_config(model, about["vocab_size"], model.context or 0, 0, 0)
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        built = AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in built.parameters())
    assert count == num_parameters(model, about["vocab_size"], model.context or 0), (
        "arithmetic and the real model differ"
    )
    assert abs(count / about["published_parameters"] - 1) < 0.01


def test_zero_stages_divide_what_they_shard() -> None:
    model = resolve_model(Model(preset="gpt2-124m"))
    parameters = num_parameters(model, 50257, 1024)
    by_stage = [
        memory_per_rank(parameters, 12, 768, 50257, kept_values(model), PassSizes(1024, ranks=8, stage=stage))
        for stage in range(4)
    ]
    assert (by_stage[0].weights, by_stage[0].gradients, by_stage[0].optimizer) == (
        2 * parameters,
        2 * parameters,
        12 * parameters,
    )
    assert [m.optimizer for m in by_stage[1:]] == [12 * parameters // 8] * 3
    assert [m.gradients for m in by_stage[2:]] == [2 * parameters // 8] * 2 and by_stage[
        3
    ].weights == 2 * parameters // 8


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_written_model_is_read_back_bit_for_bit(tmp_path: Path, architecture: str, precision: str) -> None:
    section = Model(architecture=architecture, num_layers=2, width=16, num_heads=2, context=32)
    made = models.new_model(section, 40, 32, 0, 0, seed=3).to(models.DTYPES[precision]).eval()
    models.write_model(tmp_path, made.config, dict(made.named_parameters()))
    again = models.read_model(tmp_path, models.DTYPES[precision], torch.device("cpu"))
    tokens = torch.arange(20).reshape(2, 10)
    assert torch.equal(made(input_ids=tokens).logits, again(input_ids=tokens).logits)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=models.DTYPES[precision]).eval()
    ours, others = dict(made.named_parameters()), dict(theirs.named_parameters())
    assert ours.keys() == others.keys(), "an ordinary Hugging Face folder"
    assert all(torch.equal(tensor, others[name]) for name, tensor in ours.items())
    # the harness computes GELU in another kernel
    close = {"rtol": 0, "atol": 1e-6 if precision == "fp32" else 2e-3}
    torch.testing.assert_close(made(input_ids=tokens).logits, theirs(input_ids=tokens).logits, **close)


def test_new_weights_are_a_function_of_the_seed() -> None:
    section = Model(preset="tiny")
    a, b, c = (next(models.new_model(section, 40, 64, 0, 0, seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


# --- sampling -----------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_librarys_loss(tiny: Any) -> None:
    tokens = np.random.default_rng(0).integers(1, 40, (7, 12)).astype(np.int32)
    with torch.inference_mode():
        loss = tiny(input_ids=torch.from_numpy(tokens).long(), labels=torch.from_numpy(tokens).long()).loss
    ours = score(tiny, Examples.full(tokens), bos=None)
    assert ours.sum() / (7 * 11) == pytest.approx(float(loss), rel=1e-5)
    with_bos = np.concatenate([np.zeros((7, 1), np.int32), tokens], axis=1)
    assert score(tiny, Examples.full(tokens), bos=0) == pytest.approx(
        score(tiny, Examples.full(with_bos), bos=None), rel=1e-5
    )


def test_a_score_does_not_depend_on_the_others_nor_on_padding(tiny: Any) -> None:
    tokens = np.random.default_rng(1).integers(1, 40, (9, 12)).astype(np.int32)
    lengths = np.array([12, 3, 5, 12, 1, 7, 12, 2, 9], dtype=np.int32)
    whole = score(tiny, Examples(tokens, lengths), bos=0)
    for row in range(9):
        alone = Examples(tokens[row : row + 1].copy(), lengths[row : row + 1])
        alone.values[0, lengths[row] :] = 0
        assert score(tiny, alone, bos=0)[0] == pytest.approx(whole[row], rel=1e-6)
    shares = [score(tiny, Examples(tokens, lengths), 0, rank, 2) for rank in (0, 1)]
    assert (np.isnan(shares[0]) ^ np.isnan(shares[1])).all()


def test_tokens_are_drawn_from_the_models_distribution(tiny: Any) -> None:
    """Chi-square of 20,000 first tokens against the model's own probabilities."""
    from scipy import stats

    with torch.inference_mode():
        logits = tiny(input_ids=torch.zeros((1, 1), dtype=torch.long)).logits[0, -1:]
    expected = torch.softmax(logits.double(), -1)[0].numpy() * 20_000
    uniform = torch.from_numpy(np.random.default_rng(5).random(20_000))
    drawn = choose(logits.expand(20_000, -1), uniform, Sample()).numpy()
    counts = np.bincount(drawn, minlength=40)
    likely = expected >= 5
    observed, wanted = (
        np.append(counts[likely], counts[~likely].sum()),
        np.append(expected[likely], expected[~likely].sum()),
    )
    observed, wanted = (observed, wanted) if wanted[-1] > 0 else (observed[:-1], wanted[:-1])
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("vocab", [40, 64, 700])
def test_a_token_is_where_the_running_sum_passes_the_number(vocab: int) -> None:
    """Against the definition, in fp64 over the whole vocabulary; some tokens cannot occur."""
    generator = np.random.default_rng(vocab)
    logits = generator.normal(0, 3, (500, vocab))
    logits[generator.random((500, vocab)) < 0.3] = -np.inf
    logits[:, 3] = 0.0
    number = generator.random(500)
    sums = np.exp(logits).cumsum(axis=1)
    wanted = np.array(
        [np.searchsorted(row, u * row[-1], side="right") for row, u in zip(sums, number, strict=True)]
    )
    found = choose(torch.from_numpy(logits).float(), torch.from_numpy(number), Sample()).numpy()
    edge = np.abs(sums / sums[:, -1:] - number[:, None]).min(axis=1) < 1e-6  # where rounding may decide
    assert (found == wanted)[~edge].all() and edge.mean() < 0.05
    last = choose(
        torch.from_numpy(logits).float(), torch.full((500,), 1 - 1e-16, dtype=torch.float64), Sample()
    )
    assert np.isfinite(logits[np.arange(500), last.numpy()]).all()


def test_an_example_of_a_mixture_is_one_of_its_ways(tiny: Any) -> None:
    """Each is what a corpus drawn in one of the ways alone has at its place; shares are binomial."""
    ways = [{"temperature": 0.5}, {"top_k": 2}]
    mixed = Sample(mixture=[{"share": 0.3, **ways[0]}, {"share": 0.7, **ways[1]}])  # type: ignore[list-item]
    found, *alone = (
        draw_batch(Sampler(tiny, how, bos=0, eos=0), None, 0, 12, 3, 1, 64, 200).values
        for how in (mixed, *(Sample(**way) for way in ways))
    )
    first, second = ((found == one).all(axis=1) for one in alone)
    assert (first | second).all()
    assert abs(first.sum() - 60) < 4 * np.sqrt(200 * 0.3 * 0.7) + (first & second).sum()
    part = draw_batch(Sampler(tiny, mixed, bos=0, eos=0), None, 0, 12, 3, 1, 100, 50).values
    assert (part == found[36:86]).all(), "an example does not depend on its batch"


def test_temperature_top_k_and_top_p() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]))

    def probabilities(**settings: Any) -> list[float]:
        found = distribution(logits, Sample(**settings))[0]
        return (found / found.sum()).tolist()

    assert probabilities() == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.0625])
    assert probabilities(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    assert probabilities(top_p=0.5) == pytest.approx([1, 0, 0, 0, 0])
    assert probabilities(top_p=0.51) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    squares = np.array([0.25, 0.0625, 0.015625, 0.00390625, 0.00390625])
    assert probabilities(temperature=0.5) == pytest.approx((squares / squares.sum()).tolist())
    numbers = torch.tensor([0.0, 0.5, 1 - 1e-16])
    assert choose(logits.expand(3, -1), numbers, Sample(top_k=1)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("prompt", ["bos", "real_prefix"])
def test_an_example_is_the_same_whatever_else_is_sampled(tiny: Any, prompt: str) -> None:
    config = Sample(prompt=prompt, prompt_tokens=None if prompt == "bos" else 3, keep_prompt=prompt != "bos")
    prompts = None if prompt == "bos" else Examples.full(np.arange(60).reshape(5, 12).astype(np.int32) % 40)
    sampler = Sampler(tiny, config, bos=0, eos=0)

    def batch(start: int) -> np.ndarray:
        return draw_batch(
            sampler, prompts, 0 if prompt == "bos" else 3, 12, seed=7, generation=2, start=start, size=8
        ).values

    first = batch(8)
    for _ in range(2):
        rest = draw_batch(
            sampler, prompts, 0 if prompt == "bos" else 3, 12, seed=7, generation=2, start=16, size=8
        )
        torch.rand(5)  # the global generator has no say
        assert (batch(8) == first).all() and (rest.values != first).any()
    assert not (batch(0) == batch(8)).all(), "another batch draws other numbers"
    assert len({row.tobytes() for row in batch(0)}) > 4, "rows with one prompt do not share a stream"
    if prompts is not None:
        assert (batch(8)[:, :3] == prompts.values[np.arange(8, 16) % 5, :3]).all()


def test_natural_length_ends_with_the_end_of_text_token(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(tiny, Sample(length="natural", temperature=3.0), bos=0, eos=5, noted=True)
    drawn = draw_batch(sampler, None, 0, 40, seed=1, generation=0, start=0, size=64)
    few = draw_batch(sampler, None, 0, 40, seed=1, generation=0, start=0, size=4)
    monkeypatch.setitem(sampling.LOOKS, "cpu", 16)  # as on a GPU: some tokens are drawn for nobody
    for seldom, often in ((64, drawn), (4, few)):
        again = draw_batch(sampler, None, 0, 40, seed=1, generation=0, start=0, size=seldom)
        assert (again.values == often.values).all() and (again.lengths == often.lengths).all()
        assert np.array_equal(again.notes["logprob"], often.notes["logprob"], equal_nan=True)
    ended = drawn.lengths < 40
    assert ended.any()
    for row, length in zip(drawn.values[ended], drawn.lengths[ended], strict=True):
        assert row[length - 1] == 5 and 5 not in row[: length - 1] and (row[length:] == 0).all()


def test_sampling_with_a_cache_is_reading_all_at_every_token(tiny: Any) -> None:
    prompts = np.array([[3, 4], [9, 1]], dtype=np.int64)
    drawn = Sampler(tiny, Sample(temperature=1e-4), None, 0).draw(prompts, 10, np.full((2, 10), 0.5))
    tokens = torch.from_numpy(prompts)
    with torch.inference_mode():
        for _ in range(10):
            tokens = torch.cat([tokens, tiny(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert (drawn.values == tokens[:, 2:].numpy()).all()


# --- training -----------------------------------------------------------------------------------------------


def test_an_epoch_reads_every_example_once_and_batches_run_on() -> None:
    schedule, cache = Schedule(size=10, batch_size=4, steps=5), {}  # type: ignore[var-annotated]
    read = np.concatenate([schedule.order(3, 1, step, cache) for step in range(5)])
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert read[:10].tolist() != read[10:].tolist()
    assert (schedule.order(3, 1, 2, {}) == read[8:12]).all(), "a step's batch is a function of the step"


def test_learning_rate_schedules() -> None:
    def rates(**settings: Any) -> list[float]:
        train = Train(learning_rate=1.0, warmup_ratio=0.2, min_learning_rate_ratio=0.1, **settings)
        return [learning_rate(train, step, 10) for step in range(10)]

    assert rates(schedule="constant") == pytest.approx([0.5, 1.0] + [1.0] * 8)
    assert rates(schedule="linear") == pytest.approx([0.5, 1.0] + [1 - 0.9 * i / 8 for i in range(8)])
    assert rates(schedule="cosine") == pytest.approx(
        [0.5, 1.0] + [0.1 + 0.45 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    )


def test_budgets_equalise_what_they_name() -> None:
    reference = Examples.full(np.zeros((100, 8), np.int32))
    grown = Examples(np.zeros((300, 8), np.int32), np.full(300, 4, dtype=np.int32))
    train = Train(epochs=2, batch_size=10)
    assert plan_steps(train, grown, "examples", reference).steps == 60
    assert plan_steps(train, grown, "steps", reference).steps == 20
    assert plan_steps(train, grown, "tokens", reference).steps == 40
    assert plan_steps(Train(max_steps=7), grown, "examples", reference).steps == 7


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_micro_batches_do_not_change_the_science(
    ranks: Any, make_config: Make, tmp_path: Path, stage: int
) -> None:
    """Gradients are summed in another order, so fp32 losses agree to rounding and not to the bit."""
    losses = []
    for micro in (8, 2):
        changes = {
            "learner.train.precision": "fp32",
            "generations": 0,
            "resources.micro_batch": micro,
            "resources.zero_stage": stage,
        }
        prepared, store = run_all(
            make_config(TEXT, f"{micro}.yaml", **changes), tmp_path / str(micro), ranks=ranks
        )
        fit = next(iter(prepared.lineage.nodes.values())).fit
        losses.append(store.json("fits", fit, "fit.json")["log"]["train_loss"])
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0], "it learns"


@pytest.mark.slow
def test_a_chain_run_again_is_the_same(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    config = make_config(TEXT)
    observer = Events()
    clean, store = run_all(config, tmp_path / "clean", ranks=ranks, observer=observer)
    expected = contents(store, clean)
    assert [store.record(key).metrics["test/nll"] for key in clean.lineage.nodes]  # type: ignore[union-attr]
    phases = [(generation, phase) for generation in range(3) for phase in ("fit", "sample", "evaluate")]
    assert observer.begun == phases, "every phase is told of when it begins, not when its first part is done"
    for stop in ("fit_started", "fit_committed", "progress sample", "sample_committed", "progress fit"):
        for generation in (0, 1):

            def crash(kind: str, fields: Any, stop: str = stop, generation: int = generation) -> None:
                if kind == stop and fields["generation"] == generation:
                    raise KeyboardInterrupt

            root = tmp_path / f"{stop}-{generation}"
            with pytest.raises(KeyboardInterrupt):
                run_all(config, root, ranks=ranks, observer=Events(crash))
            prepared, store = run_all(config, root, ranks=ranks)
            assert contents(store, prepared) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "learner.sample": {"prompt": "previous_prefix", "prompt_tokens": 4},
            "regime": {"kind": "accumulate_subsample"},
        },
        {
            "learner.sample": {"prompt": "real_prefix", "keep_prompt": True, "top_k": 20},
            "learner.init": "previous",
        },
        {
            "filters": [{"kind": "deduplicate"}, {"kind": "repetition", "n": 2, "max_share": 0.6}],
            "learner.train.weights": "best",
        },
        {
            "data.separator": "eos",
            "learner.sample": {"length": "natural"},
            "regime": {"kind": "accumulate", "budget": "tokens"},
        },
        {
            "learner.model": {
                "architecture": "llama",
                "num_layers": 1,
                "width": 16,
                "num_heads": 2,
                "context": 48,
            }
        },
        {
            "learner.model.dropout": 0.1,
            "regime": {"kind": "replace_grown", "refresh": {"every": 2, "init": "previous"}},
        },
    ],
    ids=["previous_prefix", "real_prefix", "filters", "natural", "llama", "dropout-refresh"],
)
def test_switches_run_and_are_reproducible(
    ranks: Any, make_config: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = make_config(TEXT, **changes)
    first = contents(*reversed(run_all(config, tmp_path / "a", ranks=ranks)))  # type: ignore[misc]
    prepared, store = run_all(config, tmp_path / "b", ranks=ranks)
    assert contents(store, prepared) == first
    for chain in prepared.lineage.chains:
        for key in chain.nodes:
            record = store.record(key)
            assert record is not None and record.status == "ok" and record.metrics["test/nll"] is not None
    as_drawn = {key: own_nll(store, key) for chain in prepared.lineage.chains for key in chain.nodes}
    forget_scores(store)
    prepared, store = run_all(config, tmp_path / "b", ranks=ranks)
    for key, nll in as_drawn.items():
        read_again = own_nll(store, key)
        assert read_again == pytest.approx(nll, rel=1e-3)  # in bf16, read token by token and at once
        assert (read_again == nll).all() == ("prompt" in changes.get("learner.sample", {}))


def own_nll(store: Store, key: str) -> Any:
    """What a generation's model gives each example that it wrote, in nats."""
    from safetensors.numpy import load_file

    return load_file(store.path("evaluations", key) / "arrays.safetensors")["self_nll"]


def forget_scores(store: Store) -> None:
    """As corpora of earlier versions are, and no evaluation yet."""
    for path in (store.root / "corpora").glob("*/*.parquet"):
        table = pq.read_table(path)
        about = {name: value for name, value in table.schema.metadata.items() if name != b"nll"}
        kept = [name for name in table.column_names if name != "nll"]
        pq.write_table(table.select(kept).replace_schema_metadata(about), path)
    shutil.rmtree(store.root / "evaluations")
    (store.root / "evaluations").mkdir()


@pytest.mark.slow
def test_a_corpus_that_someone_else_wrote(
    ranks: Any, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tokenised once, and read from the store from then on."""
    from safetensors.numpy import load_file

    from harness.data import text

    (tmp_path / "web.txt").write_text("".join(f"The {i}th page of the web.\n\n" for i in range(900)))
    source = {"kind": "replace", "synthetic_ratio": 0.5, "source": {"corpus": str(tmp_path / "web.txt")}}
    config = make_config(TEXT, regime=source, generations=1)
    prepared, _ = open_prepared(config, tmp_path / "root")
    with monkeypatch.context() as patch:
        patch.setattr(text, "pack", lambda *_: pytest.fail("it was tokenised again"))
        again, _ = open_prepared(config, tmp_path / "root")
        assert again.lineage.nodes.keys() == prepared.lineage.nodes.keys()
        (tmp_path / "web.txt").unlink()
        prepared, store = run_all(config, tmp_path / "root", ranks=ranks, prepared=prepared)
    last = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[-1]]
    origin = load_file(store.path("fits", last.fit) / "training_set.safetensors")["origin"]
    assert (origin == EXTERNAL).sum() == 48


def test_bits_per_byte_count_the_bytes_of_what_is_predicted(
    ranks: Any, make_config: Make, tmp_path: Path
) -> None:
    """Of ASCII, the bytes of each block's text."""
    (tmp_path / "text.txt").write_text(
        "".join(f"Paragraph {i} tells of {i * i} things.\n\n" for i in range(400))
    )
    sample = {"prompt": "real_prefix", "prompt_tokens": 4}
    changes = {"data.source": str(tmp_path / "text.txt"), "data.prepend_bos": False, "learner.sample": sample}
    config = make_config(TEXT, generations=0, **changes)
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    record = store.record(prepared.lineage.chains[0].nodes[0])
    corpus = load_data(prepared.specs[0].data, store)
    text = [corpus.decode(row[1:]) for row in corpus.test.values]  # type: ignore[attr-defined]
    nats = record.metrics["test/nll"] * 15 * len(text)  # type: ignore[union-attr, operator]
    assert record.metrics["test/bits_per_byte"] == pytest.approx(
        nats / math.log(2) / sum(len(t.encode()) for t in text)
    )  # type: ignore[union-attr]


def test_bits_per_byte_where_blocks_cut_within_characters(
    ranks: Any, make_config: Make, tmp_path: Path
) -> None:
    """Decoded as one stream no character is cut; of ASCII the records stay what they were, under the keys
    that they had."""
    words = "съешь ещё этих мягких французских булок да выпей же чаю 日本語 テキスト".split()
    order = np.random.default_rng(0)
    (tmp_path / "cut.txt").write_text(
        "".join(" ".join(order.choice(words, 12)) + f" {i}\n\n" for i in range(400))
    )
    config = make_config(
        TEXT, generations=0, **{"data.source": str(tmp_path / "cut.txt"), "data.split": {"test": 0.1}}
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    record = store.record(prepared.lineage.chains[0].nodes[0])
    corpus = load_data(prepared.specs[0].data, store)
    blocks = corpus.test.values  # type: ignore[attr-defined]
    whole = len(corpus.decode(blocks.reshape(-1)).encode())  # type: ignore[attr-defined]
    apart = sum(len(corpus.decode(row).encode()) for row in blocks)  # type: ignore[attr-defined]
    assert apart > 1.01 * whole, "blocks do cut within characters, or the test says little"
    nats = record.metrics["test/nll"] * blocks.size  # type: ignore[union-attr, operator]
    found = nats / math.log(2) / record.metrics["test/bits_per_byte"]  # type: ignore[union-attr]
    assert abs(found - whole) <= 6, "a character may be cut at either end"
    assert prepared.specs[0].measured.identity["metrics"]["likelihood"] == 3
    (tmp_path / "ascii.txt").write_text(
        "".join(f"Paragraph {i} tells of {i * i} things.\n\n" for i in range(400))
    )
    plain, _ = open_prepared(
        make_config(TEXT, **{"data.source": str(tmp_path / "ascii.txt")}), tmp_path / "root"
    )
    assert plain.specs[0].measured.identity["metrics"]["likelihood"] == 2


@pytest.mark.slow
def test_divergence_is_a_result(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    config = make_config(
        TEXT,
        **{"learner.train": {"epochs": 1, "batch_size": 8, "learning_rate": 1e30, "max_grad_norm": None}},
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second, _ = prepared.lineage.chains[0].nodes
    record = store.record(first)
    assert record is not None and record.status == "diverged" and record.metrics == {}
    assert store.record(second) is None
    losses = store.json("fits", record.fit, "fit.json")["log"]["train_loss"]
    assert None in losses and 0 not in losses
    # A chain whose last generation this is has diverged too, though nothing is left that does not exist.
    short = open_prepared(config, tmp_path / "root", "generations=0")
    for found in ((prepared, store), short):
        (state,) = chain_states(*found)
        assert (state.state, state.detail) == ("diverged", "in generation 0")
    # Nothing is left to do, so no Ray is asked for: at this address there is none.
    again = harness("run", config, "--root", tmp_path / "root", "--json", "--address", "127.0.0.1:1")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["chains_complete"], summary["generations_computed"], summary["generations_reused"]) == (
        1,
        0,
        1,
    )


@pytest.mark.slow
def test_longer_corpora_and_refits_are_those_of_a_first_try(
    ranks: Any, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evicted weights are fitted again when a corpus must grow, and give the same bits.

    Where they diverge on another machine, what was committed stays.
    """
    config = make_config(TEXT, generations=1)
    prepared, store = run_all(config, tmp_path / "a", ranks=ranks)
    first = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[0]]
    store.evict_weights(first.fit, "test")
    grown = make_config(TEXT, "grown.yaml", generations=1, regime={"kind": "replace_grown"})
    fit, folder = LanguageModelLearner.fit, store.path("fits", first.fit)
    committed = {path.name: path.read_bytes() for path in folder.iterdir()}

    def diverging(self: LanguageModelLearner, task: Any) -> Any:
        outcome = fit(self, task)
        (task.out / WEIGHTS).unlink()
        return replace(outcome, status="diverged")

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelLearner, "fit", diverging)
        with pytest.raises(LearnerError, match="freed or lost, and fitting it again .* has diverged"):
            run_all(grown, tmp_path / "a", ranks=ranks)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == committed
    observer = Events()
    prepared, store = run_all(grown, tmp_path / "a", ranks=ranks, observer=observer)
    assert "weights_restored" in [kind for kind, _ in observer.seen]
    fresh, fresh_store = run_all(grown, tmp_path / "b", ranks=ranks)
    assert contents(store, prepared) == contents(fresh_store, fresh)


@pytest.mark.slow
def test_weights_that_are_gone_are_refitted_only_where_needed(
    ranks: Any, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of a metric takes the stored scores; other prompts need weights, and get a replica
    where the bits differ."""
    prepared, store = run_all(make_config(TEXT, generations=1), tmp_path / "a", ranks=ranks)
    before = {node.fit: store.record(key) for key, node in prepared.lineage.nodes.items()}
    for fit in before:
        store.evict_weights(fit, "test")
        sums = store.path("fits", fit) / "checksums.json"  # as another device would have written them
        sums.write_text(
            json.dumps({**json.loads(sums.read_text()), WEIGHTS: {"bytes": 1, "sha256": "0" * 64}})
        )
    monkeypatch.setitem(LEARNERS["language_model"].groups, "lexical", 99)  # type: ignore[arg-type]
    observer = Events()
    again, _ = run_all(make_config(TEXT, generations=1), tmp_path / "a", ranks=ranks, observer=observer)
    assert again.lineage.nodes.keys().isdisjoint(prepared.lineage.nodes)
    assert "fit_started" not in [kind for kind, _ in observer.seen] and not any(
        store.has_weights(fit) for fit in before
    )
    for key, node in again.lineage.nodes.items():
        found = store.record(key)
        assert found is not None and found.metrics == before[node.fit].metrics  # type: ignore[union-attr]
    observer = Events()
    run_all(
        make_config(TEXT, generations=1, **{"evaluate.prompts": ["One more prompt"]}),
        tmp_path / "a",
        ranks=ranks,
        observer=observer,
    )
    assert [kind for kind, _ in observer.seen].count("weights_replicated") == 2
    assert all(store.has_weights(fit) for fit in before)
    assert not [
        item for item in examine(Store(store.root), Leases(store.root, None)) if item.severity == "damage"
    ]


def test_a_folder_of_files_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from harness.config.schema import TextData
    from harness.data.documents import read_documents

    (tmp_path / "a.txt").write_text("one\nstill one\n\n\n  \ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    pq.write_table(pa.table({"text": ["five", None, "six"]}), tmp_path / "c.parquet")
    (tmp_path / "ignored.csv").write_text("x")
    found = read_documents(TextData(source=str(tmp_path)))
    assert list(found.whole) == ["one\nstill one", "two", "three", "four", "five", "six"]
    assert found.fingerprint() == read_documents(TextData(source=str(tmp_path))).fingerprint()
    (tmp_path / "a.txt").write_text("another\n")
    assert found.fingerprint() != read_documents(TextData(source=str(tmp_path))).fingerprint()


def test_data_are_split_by_document(make_config: Make, tmp_path: Path) -> None:
    from harness.config.schema import Split, TextData
    from harness.data.documents import SPLITS, read_documents
    from harness.data.packing import split_documents
    from harness.data.text import TextCorpus

    documents = read_documents(TextData(source="python-docs"))
    sides = split_documents(documents, Split())
    sets = [set(sides[name]) for name in SPLITS]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert sum(len(sides[name]) for name in SPLITS) == len(documents.whole)
    prepared, store = open_prepared(make_config(TEXT), tmp_path / "root")
    corpus = load_data(prepared.specs[0].data, store)
    assert isinstance(corpus, TextCorpus)
    text = "def résumé(x): # ünïcode ☃\n    return x"
    assert corpus.decode(corpus.encode(text)) == text
    assert corpus.counts.sum() == corpus.supply * 16


# --- scoring in batches of few widths -----------------------------------------------------------------------

WIDEST, FILLER = 128, 39
ENDS = (0, 1, 2, 31, 32, 33, 34, 63, 64, 65, 66, 90, 127, 128, 128, 128, 7, 40, 60, 20)
WAYS: dict[str, dict[str, Any]] = {
    "bos": {"bos": 0},
    "nothing in front": {"bos": None},
    "prompts": {"bos": None, "masked": 40},
    "prompts behind bos": {"bos": 0, "masked": 40},
    "filled prompts": {"bos": None, "masked": 40, "fill": FILLER},
    "known tokens": {"bos": 0, "tokens": 30},
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def reader(request: pytest.FixtureRequest) -> Any:
    section = Model(architecture=request.param, num_layers=2, width=16, num_heads=2, context=WIDEST)
    made = models.new_model(section, 40, WIDEST, 0, 0, seed=1).eval()
    for parameter in made.parameters():
        parameter.data *= 4.0
    return made


def of_many_lengths(way: dict[str, Any]) -> Examples:
    """Examples that end at `ENDS`, anything behind them; filled up in front where a way says so."""
    draw = np.random.default_rng(2)
    values = draw.integers(1, 30, (len(ENDS), WIDEST)).astype(np.int32)
    if "fill" in way:
        for row, filled in enumerate(draw.integers(0, way["masked"], len(ENDS))):
            values[row, :filled] = FILLER
    return Examples(values, np.array(ENDS, np.int32))


def one_by_one(model: Any, examples: Examples, way: dict[str, Any]) -> np.ndarray:
    """Nats of each token: every sequence alone, without what fills it up, in fp64."""
    model, bos, masked = copy.deepcopy(model).double(), way["bos"], way.get("masked", 0)
    found = np.zeros(examples.values.shape)
    for row, (values, length) in enumerate(zip(examples.values, examples.lengths, strict=True)):
        kept = [place for place in range(length) if values[place] != way.get("fill")]
        read = ([] if bos is None else [bos]) + [int(values[place]) for place in kept]
        if len(read) < 2:
            continue
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([read[:-1]]), use_cache=False).logits[0].double()
        nll = -logits[:, : way.get("tokens")].log_softmax(-1)[range(len(read) - 1), read[1:]].numpy()
        for place, nats in zip(kept[len(kept) - len(nll) :], nll, strict=True):
            found[row, place] = nats * (place >= masked)
    return found


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_scores_are_those_of_each_sequence_alone(reader: Any, way: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": 4 * WIDEST})
    examples = of_many_lengths(way)
    wanted = one_by_one(reader, examples, way)
    by_token = score(reader, examples, by_token=True, **way)
    np.testing.assert_allclose(by_token, wanted, atol=2e-5)
    assert ((by_token == 0) == (wanted == 0)).all() and np.count_nonzero(wanted) > 500
    np.testing.assert_allclose(score(reader, examples, **way), wanted.sum(axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_score_has_the_same_bits_in_any_company(
    reader: Any, way: dict[str, Any], precision: Any, monkeypatch: Any
) -> None:
    """Whatever else is scored, in any order, on any number of ranks; by token, too."""
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": 4 * WIDEST})
    model, examples = copy.deepcopy(reader).to(models.DTYPES[precision]), of_many_lengths(way)
    whole = {by_token: score(model, examples, by_token=by_token, **way) for by_token in (False, True)}
    assert not np.isnan(whole[True]).any()
    draw = np.random.default_rng(3)
    for count, ranks in ((1, 1), (2, 2), (9, 2), (len(ENDS), 2), (3 * len(ENDS), 3)):
        rows = draw.choice(len(ENDS), count)
        part = Examples(examples.values[rows], examples.lengths[rows])
        for by_token, wanted in whole.items():
            shares = [
                score(model, part, rank=r, world_size=ranks, by_token=by_token, **way) for r in range(ranks)
            ]
            assert (sum(~np.isnan(share) for share in shares) == 1).all()
            assert np.array_equal(np.nansum(shares, axis=0), wanted[rows])


def shapes_read(model: Any, examples: Examples, monkeypatch: Any, **how: Any) -> list[tuple[int, ...]]:
    """Shapes of what a model reads while it scores."""
    found, forward = [], model.forward

    def read(input_ids: Any, **options: Any) -> Any:
        found.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", read)
        score(model, examples, 0, **how)
    return found


def test_short_sequences_are_not_read_as_wide_as_long_ones(reader: Any, monkeypatch: Any) -> None:
    draw = np.random.default_rng(4)
    values = draw.integers(1, 30, (300, WIDEST)).astype(np.int32)
    lengths = np.clip(draw.gamma(2, 15, 300).astype(np.int32) + 2, 2, WIDEST)
    examples, widths = Examples(values, lengths), (32, 64, 128)
    shapes, rows = shapes_read(reader, examples, monkeypatch), {128: 16, 64: 16, 32: 32}
    own = np.array(widths)[np.searchsorted(widths, lengths)]
    assert shapes == [
        (size, width) for width, size in rows.items() for _ in range(-(-int((own == width).sum()) // size))
    ]
    read = sum(math.prod(shape) for shape in shapes)
    assert read < 0.45 * 19 * 2048, "they were read in 19 batches of full width"
    assert read < (own.sum() + sum(map(math.prod, zip(rows, rows.values(), strict=True)))), "few fill up"
    shares = [shapes_read(reader, examples, monkeypatch, rank=r, world_size=2) for r in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(shapes)
    for width in widths:
        one, other = (sum(shape[1] == width for shape in share) for share in shares)
        assert abs(one - other) <= 1


def test_blocks_of_text_are_read_as_they_lie(reader: Any, monkeypatch: Any) -> None:
    full = Examples.full(np.ones((70, WIDEST), np.int32))
    assert shapes_read(reader, full, monkeypatch) == 5 * [(16, WIDEST)]
    narrow = Examples(np.ones((3, 40), np.int32), np.array([0, 1, 40], np.int32))
    assert shapes_read(reader, narrow, monkeypatch) == [(51, 40)], "too narrow to be halved"


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "default"])
def test_positions_by_length_are_read_in_one_width(kind: str, monkeypatch: Any) -> None:
    """Frequencies that grow with what was read before, or change with its length, are the same for all."""
    more: dict[str, Any] = {"factor": 4.0}
    if kind == "longrope":
        more |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 32, **more}
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=40, max_position_embeddings=32, rope_parameters=rope, **sizes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 4.0
    examples = of_many_lengths({})
    shapes = {shape[1] for shape in shapes_read(model, examples, monkeypatch)}
    assert shapes == ({32, 64, 128} if kind == "default" else {1, 128})
    whole = score(copy.deepcopy(model), examples, 0)
    score(model, Examples.full(np.ones((2, 2 * WIDEST), np.int32)), 0)
    assert np.array_equal(score(model, examples, 0), whole), "longer texts were read before"
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight *= 1.05
    found = drift.drift(model, other, examples, 0, 0, lambda: None)
    score(model, Examples.full(np.ones((2, 2 * WIDEST), np.int32)), 0)
    assert np.array_equal(drift.drift(model, other, examples, 0, 0, lambda: None), found)
    alone = [
        score(copy.deepcopy(model), examples.take(slice(row, row + 1)), 0)[0] for row in range(len(ENDS))
    ]
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("name", ["bos", "nothing in front", "filled prompts"])
def test_drift_does_not_depend_on_widths(reader: Any, name: str, monkeypatch: Any) -> None:
    way = WAYS[name]
    examples, other = of_many_lengths(way), copy.deepcopy(reader)
    for parameter in other.parameters():
        parameter.data *= 1.05
    monkeypatch.setattr(drift, "BATCH_TOKENS", {"cpu": 3 * WIDEST})
    about = (other, reader, examples, way["bos"], way.get("masked", 0), lambda: None, way.get("fill"))
    found = drift.drift(*about)
    monkeypatch.setattr(batches, "HALVINGS", 0)
    assert found == pytest.approx(drift.drift(*about), rel=1e-5) and found[1] > 1e-3
