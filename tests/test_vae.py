"""The VAE: images and their keys, streams, resuming to the bit, metrics against closed forms."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import Events, contents, open_prepared, run_all, stopping
from conftest import IMAGES, Make, harness
from PIL import Image

from harness.config import expand, load_file
from harness.config.schema import Vae
from harness.data.images import ImageSet
from harness.errors import InputError
from harness.inspection.starter import starter
from harness.learners import Control, SoloRanks, make_learner
from harness.learners.protocol import EvaluateTask, SampleTask, TrainingSet
from harness.learners.schedule import Schedule
from harness.learners.vae.learner import LATENT_SAMPLES, VaeLearner
from harness.learners.vae.model import ConvVae, decoded, new_model, write_model
from harness.learners.vae.training import plan_steps
from harness.metrics import vae as metrics
from harness.preparation import load_data
from harness.records import Examples
from harness.regimes import Drawn
from harness.reporting import ledger
from harness.reporting.baseline import NO_BETTER, baselines
from harness.science import EvaluationSpec
from harness.store import Store
from harness.study import Prepared


class Crash(Exception):
    pass


def crash_at(kind: str, count: int, **wanted: Any) -> Events:
    seen: list[int] = []

    def on(found: str, fields: Mapping[str, Any]) -> None:
        if found == kind and all(fields.get(name) == value for name, value in wanted.items()):
            seen.append(1)
            if len(seen) == count:
                raise Crash

    return Events(on)


def keys(prepared: Prepared) -> set[str]:
    return set(prepared.lineage.nodes)


@dataclass(frozen=True)
class Opened:
    """A cell's learner with its data, and the spec of its generation 0."""

    learner: VaeLearner
    data: ImageSet
    spec: EvaluationSpec

    @property
    def section(self) -> Vae:
        found = self.spec.fit.learner.section
        assert isinstance(found, Vae)
        return found


def open_learner(config: Path, root: Path) -> Opened:
    prepared, store = open_prepared(config, root)
    data = load_data(prepared.specs[0].data, store)
    learner = make_learner("vae", data, SoloRanks(), prepared.executions[0])
    assert isinstance(learner, VaeLearner) and isinstance(data, ImageSet)
    return Opened(learner, data, next(iter(prepared.lineage.nodes.values())).spec)


def weights(store: Store, prepared: Prepared) -> dict[str, bytes]:
    return {
        node.fit: (store.path("fits", node.fit) / "model.safetensors").read_bytes()
        for node in prepared.lineage.nodes.values()
    }


# --- data and keys ------------------------------------------------------------------------------------------


def test_digits_are_split_once_for_all_seeds(make_config: Make, tmp_path: Path) -> None:
    data = open_learner(make_config(IMAGES), tmp_path / "root").data
    held_out = round(0.2 * 1797)
    assert (data.shape, data.num_examples, data.supply, len(data.test)) == (
        (8, 8),
        96,
        1797 - held_out,
        held_out,
    )
    everything = np.concatenate([data.real(0, data.supply).values, data.test.values])
    from sklearn.datasets import load_digits

    whole = load_digits().data
    assert sorted(map(bytes, np.rint(everything * 16).astype(np.uint8))) == sorted(
        map(bytes, whole.astype(np.uint8))
    )
    assert data.real(0, 8).values.min() >= 0 and data.real(0, 50).values.max() == 1.0
    assert (data.real(0, 8).values == data.real(7, 96).values[:8]).all()


def test_the_key_is_of_the_content_not_of_the_path(make_config: Make, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    changed = pixels.copy()
    changed[3, 2, 1] ^= 1
    for name, array in {"a": pixels, "b": pixels, "c": changed, "floats": (pixels / 255.0).astype(np.float32),
                        "labels": labels, "others": labels[::-1].copy()}.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)

    def found(name: str, classes: str | None = "labels") -> set[str]:
        data = {"source": str(tmp_path / f"{name}.npy"), "kind": "images", "num_examples": 32}
        data |= {} if classes is None else {"labels": str(tmp_path / f"{classes}.npy")}
        return keys(open_prepared(make_config(IMAGES, f"{name}.yaml", data=data), tmp_path / "root")[0])

    assert found("a") == found("b") == found("floats")
    assert not found("a") & (found("c") | found("a", "others") | found("a", None))


@pytest.mark.parametrize(
    ("change", "same_first_fit"),
    [
        ({"resources.sample_batch": 16, "resources.checkpoint_s": 5.0, "retention.weights": "all"}, True),
        ({"learner.train.beta": 1.0, "learner.init": "scratch", "learner.sample": {"binary": False}}, True),
        ({"learner.sample.binary": True}, True),
        ({"learner.init": "previous"}, True),
        ({"evaluate.examples": 32}, True),
        ({"learner.train.beta": 0.5}, False),
        ({"learner.latent_dim": 5}, False),
        ({"learner.channels": [4, 9]}, False),
        ({"data.num_examples": 95}, False),
        ({"data.split": {"test": 0.3}}, False),
        ({"seed": 1}, False),
    ],
)
def test_what_enters_which_key(
    make_config: Make, tmp_path: Path, change: dict[str, Any], same_first_fit: bool
) -> None:
    base = open_prepared(make_config(IMAGES), tmp_path / "root")[0]
    other = open_prepared(make_config(IMAGES, "other.yaml", **change), tmp_path / "root")[0]
    first, second = (list(prepared.lineage.nodes.values()) for prepared in (base, other))
    assert (first[0].fit == second[0].fit) == same_first_fit
    science = not ({"resources.sample_batch", "learner.train.beta"} & set(change) and same_first_fit)
    assert (keys(base) != keys(other)) == science


BAD: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"resources.ranks": 2}, ("resources.ranks", "found 2", "one rank")),
    ({"data": {"source": "gaussian"}}, ("data.source", "vae reads images data", "'gaussian' is gaussian")),
    (
        {"data": {"source": "python-docs"}},
        ("data.source", "vae reads images data", "'python-docs' is text", "kind: images"),
    ),
    (
        {"learner": {"kind": "gaussian"}},
        ("data.source", "learner gaussian reads gaussian", "'digits' is images"),
    ),
    ({"data.block_size": 4}, ("data.block_size", "unknown field", "image_field")),
    ({"data.num_examples": "many"}, ("data.num_examples", "'many'", "integer")),
    ({"filters": [{"kind": "deduplicate"}]}, ("filters", "deduplicate reads text, not images")),
    ({"regime.source": {"corpus": "x"}}, ("regime.source", "images", "{cell: ...}")),
    ({"regime.budget": "tokens"}, ("regime.budget", "examples, steps")),
    ({"regime.refresh": {"every": 2, "init": "pretrained"}}, ("regime.refresh.init", "scratch, previous")),
    ({"evaluate.prompts": 3}, ("evaluate.prompts", "not used by learner vae")),
    ({"learner.channels": []}, ("learner.channels", "at least 1")),
    ({"learner.init": "pretrained"}, ("learner.init", "'pretrained'", "scratch, previous")),
    ({"learner.train.learning_rate": 0}, ("learner.train.learning_rate", "greater than 0")),
]


@pytest.mark.parametrize(
    ("changes", "expected"), BAD, ids=lambda value: next(iter(value), "")[:24] if value else ""
)
def test_a_wrong_configuration_is_one_message(
    make_config: Make, changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    path = make_config(IMAGES, **changes)
    with pytest.raises(InputError) as caught:
        expand(load_file(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:") and "Traceback" not in message and "\n" not in message
    for part in expected:
        assert part in message


def files(folder: Path) -> dict[str, str]:
    """Bad files by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat, cube = np.zeros((9, 4)), np.zeros((9, 4, 4))
    arrays = {
        "flat": flat,
        "high": cube + 256.0,
        "low": cube - 1.0,
        "nan": cube * np.nan,
        "words": cube.astype("U1"),
        "one": cube[:1],
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "objects.npy", np.array([object()]), allow_pickle=True)
    (folder / "broken.npy").write_bytes(b"no array")
    (folder / "broken.parquet").write_bytes(b"no table")
    rows = {
        "pixels": [np.zeros((4, size)).tolist() for size in (4, 4, 5)],
        "text": ["a", "b", "c"],
        "bytes": [b"x", b"y", b"z"],
    }
    pq.write_table(pa.table(rows), folder / "table.parquet")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("flat.npy", {}, "the shape [9, 4], expected [images, height, width]"),
        ("high.npy", {}, "values from 256 to 256, expected 0..1 or 0..255"),
        ("low.npy", {}, "values from -1 to -1"),
        ("nan.npy", {}, "values from nan to nan"),
        ("words.npy", {}, "expected numbers"),
        ("one.npy", {}, "too few"),
        ("objects.npy", {}, "no .npy file of numbers"),
        ("broken.npy", {}, "no .npy file of numbers"),
        ("broken.parquet", {}, "is not Parquet"),
        ("absent.npy", {}, "cannot be read: No such file"),
        ("absent.parquet", {}, "cannot be read: No such file"),
        ("table.parquet", {}, "data.image_field: "),
        ("table.parquet", {"image_field": "pixels"}, "data.label_field: "),
        (
            "table.parquet",
            {"image_field": "pixels", "label_field": None},
            "images of one size, found [4, 4] and [4, 5]",
        ),
        ("table.parquet", {"image_field": "text", "label_field": None}, "row 0, is no image"),
        ("table.parquet", {"image_field": "bytes", "label_field": None}, "row 0, cannot be decoded"),
        ("high.npy", {"labels": "absent.npy"}, "data.source: "),
        ("pictures.txt", {}, "allowed for images: digits, hf:NAME"),
        ("hf:a/b/c/d", {}, "expected hf:NAME"),
    ],
)
def test_images_that_cannot_be_read_are_one_message(
    make_config: Make, tmp_path: Path, name: str, fields: dict[str, Any], expected: str
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    source = files(folder).get(name, name if name.startswith("hf:") else str(folder / name))
    config = make_config(IMAGES, data={"source": source, "kind": "images", **fields})
    with pytest.raises(InputError) as caught:
        open_prepared(config, tmp_path / "root")
    assert expected in str(caught.value) and "Traceback" not in str(caught.value)


def test_labels_must_be_whole_numbers_one_for_each_image(make_config: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((20, 4, 4)))
    odd = {"below": np.full(20, -1), "above": np.full(20, 2**64 - 1, np.uint64)}
    for name, labels in {"short": np.zeros(19, int), "real": np.zeros(20), **odd}.items():
        np.save(tmp_path / f"{name}.npy", labels)
        data = {
            "source": str(tmp_path / "images.npy"),
            "kind": "images",
            "labels": str(tmp_path / f"{name}.npy"),
        }
        with pytest.raises(InputError, match="data.labels: expected 20 whole numbers from 0") as caught:
            open_prepared(make_config(IMAGES, data=data), tmp_path / "root")
        assert name not in odd or f"found {odd[name][0]} (20 such)" in str(caught.value)
    with pytest.raises(InputError, match="data.labels: only goes with a .npy source"):
        open_prepared(make_config(IMAGES, **{"data.labels": "x.npy"}), tmp_path / "root")


def test_fresh_real_needs_images_that_nobody_has_seen(make_config: Make, tmp_path: Path) -> None:
    config = make_config(
        IMAGES, regime={"kind": "fresh_real", "synthetic_ratio": 0.0}, **{"data.num_examples": 800}
    )
    with pytest.raises(
        InputError,
        match=r"generation 1 needs 1600 real examples in all, the training split has 1438: 162 are missing",
    ):
        open_prepared(config, tmp_path / "root")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_parquet_images_may_be_lists_bytes_or_the_hubs_form(make_config: Make, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 5), dtype=np.uint8)
    labels = list(np.arange(30) % 2)
    forms = {
        "lists": pixels.tolist(),
        "bytes": [png(image) for image in pixels],
        "hub": [{"bytes": png(image), "path": None} for image in pixels],
    }
    found = []
    for name, column in forms.items():
        pq.write_table(pa.table({"image": column, "label": labels}), tmp_path / f"{name}.parquet")
        data = {"source": str(tmp_path / f"{name}.parquet"), "kind": "images", "num_examples": 20}
        found.append(
            keys(open_prepared(make_config(IMAGES, f"{name}.yaml", data=data), tmp_path / "root")[0])
        )
    assert found[0] == found[1] == found[2]


class TestHub:
    """The library is asked for the data; only its transport is played here."""

    @staticmethod
    def data(**changes: Any) -> dict[str, Any]:
        return {"source": "hf:lab/pictures/small", "kind": "images", "num_examples": 24, **changes}

    @pytest.fixture
    def pixels(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        import datasets
        import huggingface_hub

        pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        )
        rows = [{"image": Image.fromarray(image), "label": index % 2} for index, image in enumerate(pixels)]
        splits = {"train": rows[:30], "test": rows[30:]}
        loaded = datasets.DatasetDict(
            {name: datasets.Dataset.from_list(part, features) for name, part in splits.items()}
        )
        asked = []

        def load(name: str, configuration: str | None, revision: str | None) -> Any:
            asked.append((name, configuration, revision))
            return loaded

        about = huggingface_hub.DatasetInfo(
            id="lab/pictures", sha="0" * 40, siblings=[], tags=[], downloads=0, likes=0, private=False
        )
        monkeypatch.setattr("harness.data.hub.unreached", lambda: "")
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: about)
        monkeypatch.setattr(datasets, "load_dataset", load)
        yield pixels
        assert asked == [("lab/pictures", "small", None)]

    def test_the_splits_of_the_hub_stay(self, pixels: Any, make_config: Make, tmp_path: Path) -> None:
        data = open_learner(make_config(IMAGES, data=self.data()), tmp_path / "root").data
        assert (data.supply, len(data.test), data.shape) == (30, 10, (6, 6))
        assert (
            np.rint(data.test.values * 255).astype(np.uint8).tolist() == pixels[30:].reshape(10, -1).tolist()
        )
        train = sorted(map(bytes, np.rint(data.real(0, 30).values * 255).astype(np.uint8)))
        assert train == sorted(map(bytes, pixels[:30].reshape(30, -1)))

    def test_a_column_that_is_not_there(self, pixels: Any, make_config: Make, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match="data.image_field: .* has no column 'picture'; it has image, label"
        ):
            open_prepared(make_config(IMAGES, data=self.data(image_field="picture")), tmp_path / "root")

    @pytest.mark.slow
    def test_through_the_hubs_own_client(self, make_config: Make, tmp_path: Path) -> None:
        import datasets
        from hub_endpoint import serve

        pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        )
        rows = [{"image": Image.fromarray(image), "label": index % 2} for index, image in enumerate(pixels)]
        folder = tmp_path / "hub" / "datasets" / "lab" / "pictures"
        folder.mkdir(parents=True)
        for name, part in {"train": rows[:30], "test": rows[30:]}.items():
            datasets.Dataset.from_list(part, features).to_parquet(folder / f"{name}.parquet")
        config = make_config(IMAGES, data=self.data(source="hf:lab/pictures"))
        with serve(tmp_path / "hub") as hub:
            found = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
            done = harness("plan", config, "--root", tmp_path / "root", "--json", **found)
            assert any("/datasets/lab/pictures/resolve/" in request for request in hub.requests)
        assert done.returncode == 0, done.stderr
        found |= {
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "empty"),
        }
        none = harness("plan", config, "--root", tmp_path / "root", **found)
        assert none.returncode == 2 and "data.source: hf:lab/pictures is not in" in none.stderr
        assert "and the hub is offline; run `harness fetch CONFIG` first" in none.stderr
        assert "Traceback" not in none.stderr

    def test_no_network_is_one_message(self, make_config: Make, tmp_path: Path) -> None:
        config = make_config(IMAGES, data=self.data())
        nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
        done = harness("plan", config, "--root", tmp_path / "root", **nowhere)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert (
            f"data.source: hf:lab/pictures/small is not in {tmp_path}/empty/datasets, and the hub cannot be "
            f"asked" in done.stderr
        )

    def test_a_network_that_goes_away_is_one_message(
        self, pixels: Any, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        load = datasets.load_dataset

        def fail(*arguments: Any, **options: Any) -> None:
            load(*arguments, **options)
            raise ConnectionError("no route\nand more")

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(InputError) as caught:
            open_prepared(make_config(IMAGES, data=self.data()), tmp_path / "root")
        assert str(caught.value).endswith(
            "hf:lab/pictures/small cannot be loaded (ConnectionError: no route)"
        )


# --- the model and its streams ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (7, 5), (1, 3)])
@pytest.mark.parametrize("channels", [(3,), (4, 8), (2, 3, 4)])
def test_the_decoder_gives_images_of_the_encoders_size(
    shape: tuple[int, int], channels: tuple[int, ...]
) -> None:
    model = ConvVae(shape, 4, channels)
    mean, log_variance = model.encode(torch.zeros(3, *shape))
    assert mean.shape == log_variance.shape == (3, 4)
    assert model.decode(mean).shape == (3, *shape)


def test_initial_weights_are_a_function_of_seed_and_generation(make_config: Make, tmp_path: Path) -> None:
    opened = open_learner(make_config(IMAGES), tmp_path / "root")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = new_model(opened.section, (8, 8), 0, 1).to_latent.weight
    assert (torch.random.get_rng_state() == before).all(), "the global generator is left alone"
    torch.manual_seed(2)
    assert (first == new_model(opened.section, (8, 8), 0, 1).to_latent.weight).all()
    for seed, generation in ((1, 1), (0, 2)):
        assert (first != new_model(opened.section, (8, 8), seed, generation).to_latent.weight).any()


def test_a_batch_may_be_larger_than_several_epochs() -> None:
    schedule, cache = Schedule(size=4, batch_size=10, steps=3), {}  # type: ignore[var-annotated]
    drawn = np.concatenate([schedule.order(0, 0, step, cache) for step in range(2)])
    assert all(sorted(drawn[start : start + 4].tolist()) == [0, 1, 2, 3] for start in range(0, 20, 4))
    assert (schedule.order(0, 0, 1, {}) == drawn[10:]).all()


def test_the_budget_of_steps_is_that_of_generation_0(make_config: Make) -> None:
    train = expand(load_file(make_config(IMAGES))).base.learner.train  # type: ignore[union-attr]
    assert plan_steps(train, 96, "examples", 96).steps == 3 * 96 // 16  # type: ignore[arg-type]
    assert plan_steps(train, 192, "examples", 96).steps == 3 * 192 // 16  # type: ignore[arg-type]
    assert plan_steps(train, 192, "steps", 96).steps == 3 * 96 // 16  # type: ignore[arg-type]


def draw_shards(
    opened: Opened, fit: Path, *ends: int, done: frozenset[tuple[int, int]] = frozenset()
) -> dict[int, Examples]:
    """A corpus that is extended to each of these ends."""
    shards: dict[int, Examples] = {}
    start = 0
    for stop in ends:
        opened.learner.sample(
            SampleTask(
                spec=opened.spec.corpus,
                fit=fit,
                start=start,
                stop=stop,
                prompts=None,
                append=lambda at, examples: shards.__setitem__(at, examples),
                shards=done,
                report=lambda *_: None,
                control=Control(),
            )
        )
        start = stop
    return shards


@pytest.mark.parametrize("binary", [False, True])
def test_an_example_does_not_depend_on_how_many_are_sampled(
    make_config: Make, tmp_path: Path, binary: bool
) -> None:
    opened = open_learner(make_config(IMAGES, **{"learner.sample.binary": binary}), tmp_path / "root")
    model = new_model(opened.section, (8, 8), 0, 0)
    write_model(model, tmp_path)
    whole, parts = draw_shards(opened, tmp_path, 100), draw_shards(opened, tmp_path, 60, 100)
    assert sorted(whole) == sorted(parts) == [0, 32, 64, 96]
    assert all(whole[at].values.tobytes() == parts[at].values.tobytes() for at in whole)
    assert sorted(draw_shards(opened, tmp_path, 100, done=frozenset({(32, 64)}))) == [0, 64, 96]
    values = np.concatenate([whole[at].values for at in sorted(whole)])
    assert values.dtype == np.float32 and values.shape == (128, 64)
    if binary:
        assert set(np.unique(values)) == {0.0, 1.0}
    else:
        assert len(np.unique(values, axis=0)) == 128, "every example has a latent of its own"


def test_a_drawn_pixel_has_the_mean_that_the_grey_one_shows(make_config: Make, tmp_path: Path) -> None:
    """With a decoder that ignores the latent all examples share one mean p; a mean of n draws is within 5
    sqrt(p (1 - p) / n)."""
    opened = open_learner(make_config(IMAGES, **{"learner.sample.binary": True}), tmp_path / "root")
    model = new_model(opened.section, (8, 8), 0, 0)
    with torch.no_grad():
        model.from_latent.weight.zero_()
    p = 1 / (1 + np.exp(-decoded(model, np.zeros((1, 4), np.float32)).reshape(-1).astype(np.float64)))
    drawn = opened.learner.draw(model, opened.spec.corpus, 0, 4000).values
    assert (np.abs(drawn.mean(axis=0) - p) < 5 * np.sqrt(p * (1 - p) / 4000)).all()


def test_padding_does_not_change_a_row() -> None:
    model, latent = (
        ConvVae((8, 8), 4, (4, 8)).eval(),
        np.random.default_rng(0).standard_normal((70, 4)).astype(np.float32),
    )
    whole = decoded(model, latent, 32)
    assert decoded(model, latent[:3], 32).tobytes() == whole[:3].tobytes()
    assert decoded(model, latent[64:], 32).tobytes() == whole[64:].tobytes()


# --- resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["scratch", "previous"])
def test_a_fit_that_was_killed_goes_on_to_the_same_bits(make_config: Make, tmp_path: Path, init: str) -> None:
    config = make_config(IMAGES, **{"learner.init": init, "resources.checkpoint_s": 1e-9})
    prepared, store = run_all(make_config(IMAGES, "never.yaml", **{"learner.init": init}), tmp_path / "never")
    root = tmp_path / "root"
    for generation, count in ((0, 5), (1, 7)):
        with pytest.raises(Crash):
            run_all(config, root, observer=crash_at("checkpointed", count, generation=generation))
    events = Events()
    run_all(config, root, observer=events)
    assert [fields["step"] for kind, fields in events.seen if kind == "resumed"] == [7]
    assert contents(Store(root), prepared) == contents(store, prepared)
    assert weights(Store(root), prepared) == weights(store, prepared)


@pytest.mark.slow
def test_a_chain_stopped_in_every_phase_has_the_same_bits(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(IMAGES), tmp_path / "root"
    prepared, store = run_all(config, tmp_path / "never")
    for kind in ("progress fit", "progress sample", "progress evaluate", "claimed"):
        control = Control()
        run_all(config, root, observer=stopping(control, kind), control=control)
        assert control.stopping, f"{kind} was never reached"
    last = Events()
    run_all(config, root, observer=last)
    assert contents(Store(root), prepared) == contents(store, prepared)
    assert weights(Store(root), prepared) == weights(store, prepared)


def test_a_stop_in_a_fit_saves_where_it_is(make_config: Make, tmp_path: Path) -> None:
    config, root, control = make_config(IMAGES, generations=0), tmp_path / "root", Control()
    run_all(config, root, observer=stopping(control, "progress fit", done=10), control=control)
    events = Events()
    run_all(config, root, observer=events)
    assert [fields["step"] for kind, fields in events.seen if kind == "resumed"] == [10]


def test_a_loss_that_is_not_finite_is_a_result(make_config: Make, tmp_path: Path) -> None:
    config = make_config(IMAGES, **{"learner.train.learning_rate": 1e30})
    prepared, store = run_all(config, tmp_path / "root")
    first, second = prepared.lineage.chains[0].nodes
    record = store.record(first)
    assert record is not None and record.status == "diverged" and record.metrics == {}
    assert store.record(second) is None


# --- metrics ------------------------------------------------------------------------------------------------


def test_the_kl_is_that_of_torch() -> None:
    from torch.distributions import Independent, Normal, kl_divergence

    random = np.random.default_rng(0)
    mean, log_variance = random.standard_normal((2, 9, 5))
    posterior = Independent(Normal(torch.tensor(mean), torch.tensor(np.exp(0.5 * log_variance))), 1)
    prior = Independent(
        Normal(torch.zeros(9, 5, dtype=torch.float64), torch.ones(9, 5, dtype=torch.float64)), 1
    )
    assert metrics.gaussian_kl(mean, log_variance) == pytest.approx(
        kl_divergence(posterior, prior).numpy(), rel=1e-12
    )
    assert metrics.gaussian_kl(np.zeros((1, 5)), np.zeros((1, 5))).item() == 0


def test_the_cross_entropy_is_that_of_torch_and_stays_finite() -> None:
    logits, images = np.array([[0.3, -2.0, 800.0, -800.0]]), np.array([[0.2, 0.9, 1.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(images), reduction="sum"
    )
    assert metrics.bernoulli_nll(logits, images).item() == pytest.approx(float(expected), rel=1e-12)
    assert metrics.bernoulli_nll(np.zeros((1, 10)), np.full((1, 10), 0.37)).item() == pytest.approx(
        10 * math.log(2)
    )


def test_the_mean_image_has_the_cross_entropy_of_its_pixels() -> None:
    p = np.array([0.1, 0.5, 0.9])
    images = (np.arange(10_000)[:, None] < 10_000 * p).astype(np.float32)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    assert metrics.mean_image_elbo(images, images) == pytest.approx(-entropy, abs=1e-6)
    dark, lit = np.zeros((8, 2), np.float32), np.array([[0, 1]], np.float32)
    assert metrics.mean_image_elbo(dark, lit) == pytest.approx(np.log(9 / 10) + np.log(1 / 10))


@pytest.mark.parametrize("learns", [True, False])
def test_a_vae_is_compared_with_the_mean_image(make_config: Make, tmp_path: Path, learns: bool) -> None:
    """The study that ``harness init`` writes knows more than that; three epochs of 96 images do not."""
    config = make_config(IMAGES)
    if learns:
        config.write_text(starter("vae", "vae")[0])
    sets = ("generations=0", "grid.regime.synthetic_ratio=[1.0]") if learns else ("generations=0",)
    run_all(config, tmp_path / "root", *sets)
    prepared, store = open_prepared(config, tmp_path / "root", *sets)
    (found,) = baselines(prepared, store, ledger.rows(prepared, store))
    assert found.metric == "vae/elbo" and (found.found[0] > found.value) == learns
    real = prepared.real(0, store)
    assert isinstance(real, ImageSet)
    mean = metrics.mean_image_elbo(real.real(0, real.num_examples).values, real.test.values)
    assert found.value == mean and found.text.startswith(
        f"the mean training image, its pixels independent, has {mean:.4g}; generation 0 has "
        f"{found.found[0]:.4g}"
    )
    assert found.warning == ("" if learns else NO_BETTER)


def test_the_loss_is_the_negative_elbo_and_beta_weighs_the_kl() -> None:
    model, random = ConvVae((8, 8), 4, (4,)), torch.Generator().manual_seed(0)
    images, noise = torch.rand(6, 8, 8, generator=random), torch.randn(6, 4, generator=random)
    with torch.no_grad():
        mean, log_variance = model.encode(images)
        logits = model.decode(mean + torch.exp(0.5 * log_variance) * noise)
        reconstruction = metrics.bernoulli_nll(logits.flatten(1).numpy(), images.flatten(1).numpy()).mean()
        kl = metrics.gaussian_kl(mean.double().numpy(), log_variance.double().numpy()).mean()
        for beta in (0.0, 1.0, 4.0):
            assert float(model.loss(images, noise, beta)) == pytest.approx(
                reconstruction + beta * kl, rel=1e-5
            )


def evaluation(opened: Opened, fit: Path, corpus: Examples, generation_0: Path | None = None) -> Any:
    training = TrainingSet(corpus, Drawn(np.zeros(0, np.int32), np.zeros(0, np.int64)))
    return opened.learner.evaluate(
        EvaluateTask(
            spec=opened.spec,
            fit=lambda: fit,
            generation_0=lambda: generation_0 or fit,
            is_first=generation_0 is None,
            corpus=corpus,
            training=training,
            report=lambda *_: None,
            piece=lambda _, version, compute: compute(),
            control=Control(),
        )
    )


def test_classes_have_an_elbo_of_their_own(make_config: Make, tmp_path: Path) -> None:
    """Weighed by how many test images each has, these make up the ELBO of all; evaluations alone change."""
    opened = open_learner(make_config(IMAGES, **{"evaluate.groups": "label"}), tmp_path / "root")
    write_model(new_model(opened.section, (8, 8), 0, 0), tmp_path)
    found = evaluation(opened, tmp_path, opened.data.real(0, 70))
    labels = opened.data.test_labels
    assert labels is not None
    counts = np.bincount(labels)
    own = [found.metrics[f"vae/elbo_{label}"] for label in range(10)]
    assert np.average(own, weights=counts) == pytest.approx(found.metrics["vae/elbo"])
    assert own[3] == pytest.approx(found.arrays["test_elbo"][labels == 3].mean())
    plain = open_learner(make_config(IMAGES), tmp_path / "root")
    assert plain.spec.fit == opened.spec.fit and plain.spec != opened.spec
    with pytest.raises(InputError, match=r"evaluate\.groups: found 'colour'; allowed: label, the field of"):
        open_learner(make_config(IMAGES, **{"evaluate.groups": "colour"}), tmp_path / "root")


def test_a_model_with_known_output_has_the_known_elbo(make_config: Make, tmp_path: Path) -> None:
    """All weights 0: q(z | x) is the prior, so the KL is 0; every pixel has probability 1/2, so the
    cross-entropy is 64 ln 2."""
    opened = open_learner(make_config(IMAGES), tmp_path / "root")
    data = opened.data
    model = new_model(opened.section, (8, 8), 0, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    write_model(model, tmp_path)
    found = evaluation(opened, tmp_path, data.real(0, 70))
    assert found.metrics["vae/elbo"] == pytest.approx(-64 * math.log(2))
    assert found.metrics["vae/reconstruction"] == pytest.approx(64 * math.log(2))
    assert found.metrics["vae/kl"] == found.metrics["vae/latent_std"] == 0
    assert found.arrays["test_elbo"] == pytest.approx(np.full(len(data.test), -64 * math.log(2)))
    assert found.arrays["pictures"].shape == (64, 8, 8)
    assert (found.arrays["pictures"].reshape(64, -1) == data.real(0, 64).values).all()
    assert LATENT_SAMPLES > 1


def test_generation_0_looks_at_samples_the_own_model_at_images(make_config: Make, tmp_path: Path) -> None:
    opened = open_learner(make_config(IMAGES), tmp_path / "root")
    data = opened.data
    models = {name: new_model(opened.section, (8, 8), seed, 0) for seed, name in enumerate(("own", "first"))}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        write_model(model, tmp_path / name)
    corpus = data.real(0, 50)
    found = evaluation(opened, tmp_path / "own", corpus, tmp_path / "first").metrics
    with torch.no_grad():
        means = models["first"].encode(torch.from_numpy(corpus.values).reshape(-1, 8, 8))[0].numpy()
        mean, log_variance = (
            part.double().numpy()
            for part in models["own"].encode(torch.from_numpy(data.test.values).reshape(-1, 8, 8))
        )
    assert found["vae/latent_std"] == pytest.approx(math.sqrt(means.var(axis=0).mean()), rel=1e-4)
    assert found["vae/kl"] == pytest.approx(metrics.gaussian_kl(mean, log_variance).mean(), rel=1e-4)


def test_the_classifier_knows_real_digits_and_nothing_else(make_config: Make, tmp_path: Path) -> None:
    """The real training images have their own shares of classes; a logistic regression on 8 x 8 digits errs
    on few of them."""
    opened = open_learner(make_config(IMAGES), tmp_path / "root")
    learner, data = opened.learner, opened.data
    again = open_learner(
        make_config(IMAGES, "again.yaml", seed=9, **{"data.num_examples": 40}), tmp_path / "root"
    ).learner
    assert learner.classifier is not None and again.classifier is not None and data.labels is not None
    assert learner.classifier.classes == tuple(range(10))
    images = data.test.values
    probabilities = learner.classifier.probabilities(images)
    assert (probabilities == again.classifier.probabilities(images)).all(), (
        "neither seed nor num_examples matters"
    )
    right = learner.classifier.probabilities(data.real(0, data.supply).values).argmax(axis=1) == data.labels
    assert right.mean() > 0.95


def test_a_class_behind_what_the_classifier_reads(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two classes the part that the classifier is trained on may have one: there is nothing to tell."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((40, 8, 8)))
    np.save(tmp_path / "labels.npy", np.arange(40) == 0)
    data = {"source": "images.npy", "kind": "images", "labels": "labels.npy"}
    data = {**data, **{name: str(tmp_path / data[name]) for name in ("source", "labels")}}
    opened = open_learner(make_config(IMAGES, data=data), tmp_path / "root")
    assert opened.data.labels is not None and len(np.unique(opened.data.labels)) == 2
    place = int(np.flatnonzero(opened.data.labels)[0])
    for count, told in ((place, False), (place + 1, True)):
        monkeypatch.setattr(metrics, "CLASSIFIER_EXAMPLES", count)
        opened.learner.__dict__.pop("classifier", None)
        assert (opened.learner.classifier is not None) == told


def test_the_spread_over_classes_has_closed_forms() -> None:
    uniform = metrics.class_metrics(np.eye(7).repeat(3, axis=0), tuple(range(7)))
    assert uniform["vae/class_entropy"] == pytest.approx(math.log(7))
    assert (uniform["vae/classes"], uniform["vae/confidence"], uniform["vae/share_6"]) == (
        7,
        1,
        pytest.approx(1 / 7),
    )
    rows = np.zeros((200, 3))
    rows[:, 0] = 0.8
    rows[:, 1] = 0.2
    rows[0] = (0.1, 0.9, 0.0)
    found = metrics.class_metrics(rows, (2, 5, 9))
    assert found["vae/classes"] == 1, "one of 200 is less than 1 %"
    assert (found["vae/share_2"], found["vae/share_5"], found["vae/share_9"]) == (0.995, 0.005, 0.0)
    assert found["vae/confidence"] == pytest.approx((199 * 0.8 + 0.9) / 200)
    one = metrics.class_metrics(np.array([[1.0, 0.0]] * 5), (0, 1))
    assert (one["vae/class_entropy"], one["vae/classes"]) == (0, 1)


def test_spreads_are_over_the_samples() -> None:
    means = np.array([[0.0, 10.0], [2.0, 10.0]])
    assert metrics.latent_std(means) == pytest.approx(math.sqrt(1 / 2)), "variances 1 and 0"
    assert metrics.latent_std(np.tile([3.0, -5.0], (4, 1))) == 0, "one image, however its latent looks"
    samples = np.array([[[0.0, 0.5]], [[1.0, 0.5]]])
    assert metrics.sample_std(samples) == pytest.approx(0.25), "deviations 1/2 and 0"


def test_a_detector_does_not_learn_from_the_test_set(make_config: Make, tmp_path: Path) -> None:
    """Eight images, twenty times each: whatever is held out is learned from too."""
    rng = np.random.default_rng(0)
    several, all_different = np.repeat(rng.random((8, 12, 12)), 20, axis=0), rng.random((160, 12, 12))
    config = {
        "regime": {"kind": "stream", "synthetic_ratio": 0.5, "pool": 1.0},
        "filters": [{"kind": "detector", "examples": 10}],
    }
    for name, images in (("several", several), ("different", all_different)):
        np.save(tmp_path / f"{name}.npy", images)
        data = {"source": str(tmp_path / f"{name}.npy"), "kind": "images", "num_examples": 40}
        given = make_config(IMAGES, **config, data=data)
        if name == "different":
            open_prepared(given, tmp_path / "root")
            continue
        with pytest.raises(InputError, match=r"detector learns from 10 real .* 100% stand in the test"):
            open_prepared(given, tmp_path / "root")


def test_images_without_classes_have_no_class_metrics(make_config: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((60, 28, 28)))
    data = {"source": str(tmp_path / "images.npy"), "kind": "images", "num_examples": 32}
    prepared, store = run_all(make_config(IMAGES, data=data, generations=0), tmp_path / "root")
    record = store.record(prepared.lineage.chains[0].nodes[0])
    assert record is not None and "vae/elbo" in record.metrics and "vae/class_entropy" not in record.metrics


# --- the command line and the report ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_shows_pictures_of_every_generation(make_config: Make, tmp_path: Path) -> None:
    from harness.reporting import ledger, report

    config = make_config(IMAGES, grid={"regime.synthetic_ratio": [0.5, 1.0]}, experiment="vae")
    prepared, store = run_all(config, tmp_path / "root")
    page = report.build(prepared, store, ledger.rows(prepared, store), tmp_path / "report")
    text = page.read_text()
    assert text.count('alt="samples of generation 0"') == text.count('alt="samples of generation 1"') == 2
    strips = list((tmp_path / "report" / "figures").glob("samples-*-generation-1.png"))
    assert len(strips) == 2
    with Image.open(strips[0]) as image:
        assert image.mode == "L" and image.size == (2 * (32 * 9 - 1), 2 * (2 * 9 - 1)), (
            "64 pictures of 8 x 8, 32 in a row"
        )
    assert "<th>generations" not in text
    assert (
        "By generation: std of samples in generation 0&#39;s latent</h2>" in text
        and "The column vae/latent_std of" in text
    )


def test_a_strip_is_dark_where_there_is_ink() -> None:
    from harness.reporting.figures import strip

    picture = np.array([[[0.0, 1.0], [0.5, 2.0]]])
    with Image.open(io.BytesIO(strip(picture, scale=1))) as image:
        assert np.asarray(image).tolist() == [[255, 0], [128, 0]]


@pytest.mark.slow
def test_the_command_line_plans_images(make_config: Make, tmp_path: Path) -> None:
    done = harness("plan", make_config(IMAGES), "--root", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert "2 to compute" in done.stdout + done.stderr
    import subprocess
    import sys

    code = (
        "import sys, harness.cli, harness.study, harness.learners; sys.exit(bool({'torch', 'sklearn'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
