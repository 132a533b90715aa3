"""Grey images: where they come from, their fixed split, and the folder that they are prepared into."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.images import DIGITS, ImageData
from harness.data.hub import load_hub
from harness.data.reading import ReadLimit, load_array, open_parquet, parquet_columns
from harness.data.real import ExternalCorpus, PreparedData, RealData, Room, own_examples, supply_of
from harness.errors import DataError, reason_of
from harness.records import Examples
from harness.section import science
from harness.streams import stream
from harness.terminal import shown

Pixels = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
VERSION = 1
"""Version of scaling and splitting; part of every key."""
MAX_CLASSES = 1000
MAX_CLASS = (1 << 63) - 1
MAX_PIXELS = 1 << 22
"""Of one encoded image: its header says how many there are, before a few bytes are decoded to gigabytes."""
_NOT_CONTENT = ("source", "kind", "image_field", "label_field", "labels", "revision")
_DIGITS_MAX = 16.0
_WHITE_8, _WHITE_16 = 255, 65_535
_BYTES, _DEEP, _FLOATS = "8 bits", "16 bits", "floats"
"""Of pictures: what says where their white is."""


@dataclass(frozen=True)
class Images:
    """Images with their classes.

    Attributes:
        pixels: Shape [num_images, height, width], from 0 (background) to 1.
        labels: Shape [num_images], whole numbers from 0; None where the images have no classes.
    """

    pixels: Pixels
    labels: Labels | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def take(self, index: npt.NDArray[np.int64]) -> Images:
        """The images at these positions."""
        return Images(self.pixels[index], None if self.labels is None else self.labels[index])


@dataclass(frozen=True)
class ImageSource:
    """What a source holds.

    Attributes:
        train: Its training images, or all of them.
        test: Its own test images; None where they are still to be split off.
    """

    train: Images
    test: Images | None = None

    def fingerprint(self) -> str:
        """A hash of all pixels and classes, in order, with the split."""
        digest = hashlib.sha256()
        for name, images in (("train", self.train), ("test", self.test)):
            if images is not None:
                digest.update(f"{name}:{images.pixels.shape}:{images.labels is not None}\n".encode())
                digest.update(images.pixels.astype("<f4").tobytes())
                digest.update(b"" if images.labels is None else images.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:32]


def read_images(config: ImageData) -> ImageSource:
    """Read the images that ``data.source`` names.

    Raises:
        DataError: There is no such source, or what it holds is not grey images of one size.
    """
    if config.labels is not None and not config.source.lower().endswith(".npy"):
        raise DataError(
            "data.labels: only goes with a .npy source; elsewhere data.label_field names the column of the "
            "classes"
        )
    if config.source == DIGITS:
        return ImageSource(_digits())
    if config.source.startswith("hf:"):
        return _hub(config)
    path = Path(config.source)
    readers = {".npy": _read_npy, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(
            f"data.source: found {shown(config.source)}, allowed for images: {DIGITS}, hf:NAME, or a .npy or "
            ".parquet path"
        )
    try:
        return ImageSource(readers[path.suffix.lower()](path, config))
    except OSError as error:
        raise DataError(f"data.source: {path} cannot be read: {error.strerror or error}") from None


def data_science(config: ImageData, content: str) -> dict[str, Any]:
    """What of image data enters keys: their content and their split, never their path.

    Args:
        config: The section.
        content: `ImageSource.fingerprint`.
    """
    spec = {name: value for name, value in science(config).items() if name not in _NOT_CONTENT}
    return {"kind": "images", "version": VERSION, "content": content, **spec}


def prepare(config: ImageData, source: ImageSource, folder: Path) -> None:
    """Split by a fixed shuffle, the same for every seed; writes ``images.safetensors`` into a folder.

    Raises:
        DataError: A side would be empty.
    """
    from safetensors.numpy import save_file

    train, test = source.train, source.test
    order = stream(0, 0, "images").permutation(len(train))
    if test is None:
        held_out = max(1, round(config.split.test * len(train)))
        order, test = order[held_out:], train.take(order[:held_out])
    train = train.take(order)
    if not len(train) or not len(test):
        raise DataError(f"data.source: {len(train)} training and {len(test)} test images are too few")
    found: dict[str, npt.NDArray[Any]] = {}
    for side, images in (("train", train), ("test", test)):
        found[side] = images.pixels
        if images.labels is not None:
            found[f"{side}_labels"] = images.labels
    save_file(
        {name: np.ascontiguousarray(array) for name, array in found.items()}, folder / "images.safetensors"
    )


def prepared(config: ImageData, room: Room) -> PreparedData:
    """Read and prepare images.

    Raises:
        DataError: They cannot be read, or are too few.
    """
    about = {"source": config.source}
    use = json.dumps([config.image_field, config.label_field])
    paths = [config.source, *filter(None, [config.labels])]
    known = room.recall(paths, use, ["fingerprint"])
    if known is not None:
        spec = data_science(config, known["fingerprint"])
        there = room.known(_stored(spec))
        if there is not None:
            return PreparedData(spec, ImageSet(config, there), about)
    source = read_images(config)
    spec = data_science(config, source.fingerprint())
    room.remember(paths, use, {"fingerprint": spec["content"]})
    folder = room.folder(_stored(spec), lambda folder: prepare(config, source, folder))
    return PreparedData(spec, ImageSet(config, folder), about)


def _stored(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `data_science` that decides the prepared folder."""
    apart = ("num_examples", "resample", "segment")
    return {name: value for name, value in spec.items() if name not in apart}


class ImageSet(RealData):
    """Prepared images, read from their folder."""

    config: ImageData

    def __init__(self, config: ImageData, folder: Path) -> None:
        """Read the images.

        Args:
            config: The section.
            folder: What `prepare` wrote.
        """
        from safetensors.numpy import load_file

        self._arrays: Mapping[str, npt.NDArray[Any]] = load_file(folder / "images.safetensors")
        self.config = config

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        _, height, width = self._arrays["train"].shape
        return height, width

    @property
    def example_bytes(self) -> int:
        """Bytes of an image in memory."""
        return 4 * math.prod(self.shape)

    @property
    def supply(self) -> int:
        """Images of the training split."""
        return supply_of(self.config, len(self._arrays["train"]))

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` training images of a seed; float32, shape [count, height * width]."""
        chosen = own_examples(self.config, seed, len(self._arrays["train"]), count)
        return Examples.full(_rows(self._arrays["train"][chosen]))

    @property
    def training(self) -> Pixels:
        """The training split in its own order, which is that of the classes.

        Shape [supply, height * width].
        """
        return _rows(self._arrays["train"])

    @cached_property
    def test(self) -> Examples:
        """Test images, shape [num_images, height * width]."""
        return Examples.full(_rows(self._arrays["test"]))

    @property
    def test_labels(self) -> Labels | None:
        """Classes of the test images; None where there are none."""
        return self._arrays.get("test_labels")

    def groups(self, field: str) -> dict[str, ExternalCorpus]:
        """Check that test images can be grouped by a field, and read nothing: their classes are at hand.

        Raises:
            DataError: The images have none, or the field is not theirs.
        """
        if self.test_labels is None or field != self.config.label_field:
            has = (
                "these images have no classes"
                if self.test_labels is None
                else (f"allowed: {self.config.label_field}, the field of the images' classes")
            )
            raise DataError(f"evaluate.groups: found {shown(field)}; {has}")
        return {}

    @property
    def labels(self) -> Labels | None:
        """Classes of the training split, shape [supply]; None where the images have none."""
        return self._arrays.get("train_labels")


def _rows(pixels: Pixels) -> Pixels:
    return pixels.reshape(len(pixels), -1)


def _digits() -> Images:
    """The 1,797 digits that scikit-learn brings. To import it takes a second, and each command reads them."""
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None  # pyproject.toml names it
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    return Images((pixels / _DIGITS_MAX).astype(np.float32), labels.astype(np.int64))


def scaled(values: npt.NDArray[Any], where: str, white: int = _WHITE_8) -> Pixels:
    """Pixels in [0, 1] from values in 0..1 or, where any is above 1, in 0..255.

    Args:
        values: Shape [num_images, height, width], numbers.
        where: The source, for messages.
        white: 65,535 of pictures of 16 bits: where any value is above 255, that is white.

    Raises:
        DataError: It has another shape, or values outside 0..255 (or up to white).
    """
    if values.ndim != 3 or 0 in values.shape:
        raise DataError(
            f"data.source: {where} has the shape {list(values.shape)}, expected [images, height, width], "
            "none of them 0"
        )
    if values.dtype.kind not in "buif":
        raise DataError(f"data.source: {where} holds {values.dtype}, expected numbers in 0..1 or 0..255")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # also where one is not a number
        raise DataError(f"data.source: {where} has values from {low:g} to {high:g}, expected 0..1 or 0..255")
    top = 1 if high <= 1 else _WHITE_8 if high <= _WHITE_8 else white
    return (values / float(top)).astype(np.float32)


def _classes(values: npt.NDArray[Any], count: int, field: str) -> Labels:
    expected = f"{field}: expected {count} whole numbers from 0, found"
    if values.shape != (count,) or values.dtype.kind not in "bui":
        raise DataError(f"{expected} {values.dtype} of the shape {list(values.shape)}")
    if count and not (0 <= int(values.min()) and int(values.max()) <= MAX_CLASS):
        odd = values[(values < 0) | (values > MAX_CLASS)]
        raise DataError(
            f"{expected} {odd[0]} ({len(odd)} such); images whose class is not known have none: give null"
        )
    labels = values.astype(np.int64)
    if len(np.unique(labels)) > MAX_CLASSES:
        raise DataError(
            f"{field}: found {len(np.unique(labels))} classes, at most {MAX_CLASSES} are allowed; give null "
            "for none"
        )
    return labels


def _read_npy(path: Path, config: ImageData) -> Images:
    pixels = scaled(load_array(path, "data.source"), str(path))
    if config.labels is None:
        return Images(pixels, None)
    return Images(
        pixels, _classes(load_array(Path(config.labels), "data.labels"), len(pixels), "data.labels")
    )


def _read_parquet(path: Path, config: ImageData) -> Images:
    file = open_parquet(path, "data.source")
    wanted = _columns(config, file.schema_arrow.names, str(path))
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    budget = ReadLimit("data.source")
    for found in parquet_columns(file, path, "data.source", wanted, budget):
        for name in wanted:
            columns[name] += found[name]
    return _from_columns(columns, config, str(path))


def _hub(config: ImageData) -> ImageSource:
    loaded = load_hub(config.source, config.revision)
    if "train" not in loaded:
        raise DataError(
            f"data.source: {config.source} has no split 'train'; it has {', '.join(map(str, loaded))}"
        )
    sides = {}
    for side in [name for name in ("train", "test") if name in loaded]:
        rows = loaded[side]
        wanted = _columns(config, rows.column_names, config.source)
        try:
            columns = {name: list(rows[name]) for name in wanted}
        except Exception as error:
            # what the library's decoders raise at images that are damaged, or too large to be true
            reason = reason_of(error) or type(error).__name__
            raise DataError(
                f"data.image_field: {config.source} ({side}) cannot be decoded: {reason}"
            ) from None
        sides[side] = _from_columns(columns, config, f"{config.source} ({side})")
    train, test = sides["train"], sides.get("test")
    if test is not None and test.pixels.shape[1:] != train.pixels.shape[1:]:
        found = " and ".join(str(list(images.pixels.shape[1:])) for images in (train, test))
        raise DataError(f"data.source: {config.source} has images of several sizes: {found}")
    return ImageSource(train, test)


def _columns(config: ImageData, there: Sequence[str], where: str) -> list[str]:
    wanted = {"image_field": config.image_field, "label_field": config.label_field}
    for field, name in wanted.items():
        if name is not None and name not in there:
            none = "; give null where there are no classes" if field == "label_field" else ""
            raise DataError(
                f"data.{field}: {where} has no column {shown(name)}; it has {', '.join(there)}{none}"
            )
    return [name for name in wanted.values() if name is not None]


def _from_columns(columns: Mapping[str, Sequence[Any]], config: ImageData, where: str) -> Images:
    budget, pictures = ReadLimit("data.image_field"), []
    scales: dict[str, int] = {}  # each with the first row that is of it
    for row, value in enumerate(columns[config.image_field]):
        picture, scale = _picture(value, where, row)
        pictures.append(picture)
        scales.setdefault(scale, row)
        budget.take(Path(where), 4 * picture.size)
    sizes = sorted({picture.shape for picture in pictures})
    if len(sizes) != 1:
        found = " and ".join(str(list(size)) for size in sizes[:2]) or "no image at all"
        raise DataError(f"data.image_field: {where} needs images of one size, found {found}")
    values = np.stack(pictures)
    if len(scales) > 1 and (_FLOATS in scales or values.max() > _WHITE_8):
        found = " and ".join(f"{scale} (row {row})" for scale, row in scales.items())
        raise DataError(
            f"data.image_field: {where} has pictures of several kinds, whose whites differ: {found}; give one"
        )
    pixels = scaled(values, where, _WHITE_16 if _DEEP in scales else _WHITE_8)
    if config.label_field is None:
        return Images(pixels, None)
    return Images(pixels, _classes(np.asarray(columns[config.label_field]), len(pixels), "data.label_field"))


def _picture(value: Any, where: str, row: int) -> tuple[npt.NDArray[Any], str]:
    """One image in grey, shape [height, width], and what says where its white is.

    A picture, an encoded one (as bytes, or as the hub stores it), or nested lists.
    """
    from PIL import Image

    if isinstance(value, Mapping):
        value = value.get("bytes")
    try:
        if isinstance(value, bytes):
            value = Image.open(io.BytesIO(value))
            if value.width * value.height > MAX_PIXELS:
                raise ValueError(f"{value.width} x {value.height} pixels, at most {MAX_PIXELS} are allowed")
        found, scale = _grey(value) if isinstance(value, Image.Image) else (np.asarray(value), _BYTES)
    except Exception as error:  # what the library's decoders raise at pictures that are damaged
        reason = reason_of(error) or type(error).__name__
        raise DataError(f"data.image_field: {where}, row {row}, cannot be decoded: {reason}") from None
    if found.ndim != 2 or found.dtype.kind not in "buif":
        raise DataError(
            f"data.image_field: {where}, row {row}, is no image: neither a picture nor rows of numbers"
        )
    return found, scale


def _grey(picture: Any) -> tuple[npt.NDArray[Any], str]:
    """A picture's values and scale.

    One that a camera took on its side is turned as it says itself, as the hub's reader does. Pillow makes
    everything of more than 8 bits grey by cutting it off at 255, so such pictures are taken as the numbers
    that they hold.

    Raises:
        ValueError: Nothing says what is white, or what is to be seen.
    """
    from PIL import ImageOps

    # a telephone's JPEG may hold a preview, or what it has seen besides, behind the picture (MPO)
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        raise ValueError(f"it has {frames} frames; give each a row of its own")
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < _WHITE_8:
        raise ValueError(
            f"its mode is {picture.mode} and some of its pixels are transparent, so their grey depends "
            "on what lies behind; give it a background"
        )
    if picture.mode.partition(";")[0] not in ("I", "F"):
        return np.asarray(picture.convert("L")), _BYTES
    scale = _FLOATS if picture.mode == "F" else _DEEP if ";" in picture.mode else _BYTES
    found = np.asarray(picture)
    if not (found.min() >= 0 and found.max() <= (_WHITE_16 if scale == _DEEP else _WHITE_8)):
        raise ValueError(
            f"its mode is {picture.mode} and its values go from {found.min():g} to {found.max():g}, where "
            "only 0..1 and 0..255 say what is white; give 8 or 16 bits"
        )
    return found, scale
