"""A pretrained classifier as a filter: a small one in a folder, as transformers writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import run_all
from classifiers import write_classifier
from conftest import TEXT, Make

from harness.components.filters import ClassifierFilter
from harness.curation import classifier as classifiers
from harness.curation.classifier import _identity, classifier, locate, log_odds
from harness.curation.detector import calibrated
from harness.errors import ConfigError, DataError, LearnerError
from harness.preparation import load_data
from harness.registry import Known
from harness.store import Store
from harness.study import open_study

torch = pytest.importorskip("torch")

STREAM = {"kind": "stream", "synthetic_ratio": 0.5, "pool": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "model")


def section(folder: Path, **fields: Any) -> ClassifierFilter:
    made = ClassifierFilter(kind="classifier", model=str(folder), label="machine", **fields)
    return locate(made, "filters.0")


TEXTS = [
    "a",
    "The quick brown fox.",
    "x" * 200,
    "def f(): return 1",
    "",
    "\u00e9\u00e8",
    *map(str, range(300)),
]


def test_scores_are_the_models_own_whatever_else_is_there(folder: Path) -> None:
    """Of each text by itself, without padding, through transformers: log p - log (1 - p) of the class."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = log_odds(section(folder), TEXTS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, value in zip(TEXTS[:6], found, strict=False):
        if text:  # without a token there is nothing that the model could read by itself
            ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
            with torch.no_grad():
                p = float(model(input_ids=ids).logits.double().softmax(dim=1)[0, 1])
            assert value == pytest.approx(np.log(p) - np.log1p(-p), abs=1e-4)
    assert found.std() > 0.1, "texts differ"
    some = [5, 2, 0, 250]
    assert np.array_equal(log_odds(section(folder), [TEXTS[i] for i in some]), found[some]), "bit for bit"
    assert np.array_equal(log_odds(section(folder), TEXTS[::-1])[::-1], found)
    assert np.isfinite(found).all() and len(log_odds(section(folder), [])) == 0
    short = log_odds(section(folder, max_tokens=8), TEXTS)
    assert short[2] != found[2] and short[0] == found[0], "what is longer is cut"


def test_texts_are_cut_to_the_models_own_positions(tmp_path: Path) -> None:
    """RoBERTa counts positions from behind the padding's index: of 34 rows 32 are tokens' (padding 1)."""
    shape = {"max_position_embeddings": 34, "pad_token_id": 1}
    folder = write_classifier(tmp_path / "model", kind="Roberta", **shape)
    found = log_odds(section(folder), ["x" * 31, "x" * 32, "x" * 33, "x" * 200])
    assert found[0] != found[1] == found[2] == found[3]


def test_a_temperature_divides_log_odds() -> None:
    odds = np.array([-900.0, -2.0, 0.0, 3.0, 900.0])
    for temperature in (0.5, 1.0, 4.0):
        with np.errstate(over="ignore"):
            assert calibrated(odds, temperature) == pytest.approx(1 / (1 + np.exp(-odds / temperature)))


def test_a_chain_drops_what_the_classifier_takes_for_synthetic(
    ranks: Any, make_config: Make, folder: Path, tmp_path: Path
) -> None:
    """Its verdicts are those on the texts; its place is in no key, its content is."""
    half = float(np.median(calibrated(log_odds(section(folder), TEXTS), 1.0)))
    filters = [{"kind": "classifier", "model": str(folder), "label": "machine", "threshold": round(half, 3)}]
    config = make_config(TEXT, regime=STREAM, filters=filters, generations=1, **{"data.num_examples": 32})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    node = prepared.lineage.chains[0].nodes[1]
    record = store.record(node)
    assert record is not None
    part = prepared.lineage.nodes[node].spec.fit.filters[0].section
    real = load_data(prepared.specs[0].data, store)
    pool = real.real(0, 64)  # any examples: the filter's verdict on one does not depend on the others
    known = Known(real, 0, 1, np.zeros(64))
    kept = classifier(part, pool, known)
    texts = [real.decode(row) for row in pool.values]  # type: ignore[attr-defined]
    assert kept.tolist() == [value < part.threshold for value in calibrated(log_odds(part, texts), 1.0)]
    assert 0 < kept.sum() < 64
    weighted = part.model_copy(update={"use": "weights", "bias": 2.0, "repeats": 3})
    drawn = classifier(weighted, pool, Known(real, 0, 1, np.zeros(64), take=40))
    assert len(drawn) == 40 and np.bincount(drawn).max() <= 3
    assert 0 < record.metrics["pool/kept_share"] < 1

    def keys(path: Path) -> list[str]:
        again = [{**filters[0], "model": str(path)}]
        config = make_config(TEXT, regime=STREAM, filters=again, generations=1, **{"data.num_examples": 32})
        found, scratch = open_study(config, (), Store.read(tmp_path / "root"))
        scratch.cleanup()
        return list(found.lineage.nodes)

    shutil.copytree(folder, tmp_path / "elsewhere")
    assert keys(tmp_path / "elsewhere") == list(prepared.lineage.nodes)
    other = keys(write_classifier(tmp_path / "other", seed=1))
    assert other[0] == list(prepared.lineage.nodes)[0] and other[1] != node, "generation 0 asks nobody"


def test_another_model_in_its_place_is_not_taken_for_it(
    make_config: Make, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    planned = section(place)
    write_classifier(place, seed=1)
    with pytest.raises(LearnerError, match="has changed since this run was planned"):
        log_odds(planned, ["text"])
    _identity.cache_clear()
    with pytest.raises(DataError, match=r"filters\.0\.content: found .*, and .* is "):
        locate(planned, "filters.0")


def _language_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))


def _headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: array for name, array in weights.items() if not name.startswith("classifier")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


NO_FILES = r"model: .* holds no config\.json with"
BAD: dict[str, tuple[Any, str]] = {
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"model: .* holds no config\.json with",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"model: .* holds no config\.json with",
    ),
    "a language model": (_language_model, r"model: .* is BertForMaskedLM, expected a sequence classifier"),
    "no head": (_headless, r"model: .* lacks weights of a classifier: classifier\.bias"),
    "cut": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
        r"model: .* cannot be loaded",
    ),
    "no folder": (shutil.rmtree, r"model: there is no folder /"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.touch()), r"model: /.* is no folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_classifier_is_one_message(
    make_config: Make, folder: Path, tmp_path: Path, name: str
) -> None:
    harm, message = BAD[name]
    shutil.copytree(folder, tmp_path / "model")
    harm(tmp_path / "model")
    filters = [{"kind": "classifier", "model": str(tmp_path / "model"), "label": "machine"}]
    config = make_config(TEXT, regime=STREAM, filters=filters)
    with pytest.raises(ConfigError, match=rf"config\.yaml:\d+: filters\.0\.{message}"):
        open_study(config, (), Store.read(tmp_path / "absent"))


def test_a_class_that_the_model_has_not_is_one_message(
    make_config: Make, folder: Path, tmp_path: Path
) -> None:
    filters = [{"kind": "classifier", "model": str(folder), "label": "fake"}]
    config = make_config(TEXT, regime=STREAM, filters=filters)
    with pytest.raises(ConfigError, match=r"filters\.0\.label: found 'fake', .*: 'human', 'machine', 'both'"):
        open_study(config, (), Store.read(tmp_path / "absent"))
    one = write_classifier(tmp_path / "one", id2label={0: "score"})
    filters = [{"kind": "classifier", "model": str(one), "label": "score"}]
    with pytest.raises(ConfigError, match="has 1 classes, expected two or more"):
        open_study(make_config(TEXT, regime=STREAM, filters=filters), (), Store.read(tmp_path / "absent"))


def test_little_is_filled_up() -> None:
    """A quarter at most behind the shortest texts, in few shapes."""
    filled = [classifiers._filled(length) for length in range(1, 1025)]
    assert filled == sorted(filled) and filled[:16] == [16] * 16
    for length, width in enumerate(filled, 1):
        assert length <= width and (length <= 16 or width < 1.25 * length)
    assert len(set(filled)) == 1 + 4 * 6
