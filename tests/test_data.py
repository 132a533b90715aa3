"""Data from outside: what is content, what is read, and what is refused before it is opened."""

from __future__ import annotations

import ast
import bz2
import errno
import gzip
import inspect
import io
import json
import lzma
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chains import open_prepared, run_all
from conftest import GAUSSIAN, TEXT, Make, harness
from PIL import Image

from harness.components.chat import ChatData
from harness.config.schema import ArrayData, ImageData, TextData
from harness.data import reading
from harness.data.conversations import read_conversations
from harness.data.documents import _statements, read_documents
from harness.data.images import read_images
from harness.data.packing import prepare
from harness.data.truths import make_truth
from harness.errors import ConfigError, DamagedError, DataError, InputError
from harness.preparation import load_data
from harness.proc import usable_memory
from harness.reporting import ledger
from harness.store import Store

PLAIN = [f"Document {i} tells of {i * i} things." for i in range(50)]


def read(path: Path, **settings: Any) -> Any:
    return read_documents(TextData(source=str(path), **settings))


def jsonl(texts: list[Any]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_byte_order_mark_and_windows_lines_are_no_content(tmp_path: Path, kind: str) -> None:
    content = jsonl(PLAIN) if kind == ".jsonl" else "\n\n".join(PLAIN)
    fingerprints = set()
    for encoding in ("utf-8", "utf-8-sig"):
        for newline in ("\n", "\r\n"):
            path = tmp_path / f"{encoding}{len(newline)}{kind}"
            path.write_text(content, encoding=encoding, newline=newline)
            fingerprints.add(read(path).fingerprint())
    assert len(fingerprints) == 1
    (tmp_path / f"wide{kind}").write_text(content, encoding="utf-16")
    with pytest.raises(DataError, match="is UTF-16, not UTF-8"):
        read(tmp_path / f"wide{kind}")


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\x1d", "\x1e"])
def test_only_newlines_end_a_line(tmp_path: Path, character: str) -> None:
    lines = [f"a{character}b", character, f"c{character}{character}d", f"end{character}"]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n\nnext\n", encoding="utf-8")
    assert list(read(tmp_path / "a.txt").whole) == ["\n".join(lines), "next"]


def test_a_folder_is_read_without_what_is_hidden(tmp_path: Path) -> None:
    """Compressed files are read; what is not read has a name; a store inside is not data."""
    (tmp_path / "a.JSONL").write_text(jsonl(PLAIN[:10]))  # as some systems write suffixes
    for hidden in (".ipynb_checkpoints/a-checkpoint.jsonl", ".a.jsonl", ".git/x.txt", "sub/.cache/y.jsonl"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_text(jsonl(["hidden"]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(PLAIN[10:20]).encode()))
    (tmp_path / "c.TXT.Bz2").write_bytes(bz2.compress("\n\n".join(PLAIN[20:30]).encode()))
    (tmp_path / "sub" / "d.jsonl.xz").write_bytes(lzma.compress(jsonl(PLAIN[30:]).encode("utf-8-sig")))
    for other in ("e.csv", "f.jsonl.zst", "sub/README"):
        (tmp_path / other).write_text("x")
    (tmp_path / "runs" / "work").mkdir(parents=True)
    (tmp_path / "runs" / "format").write_text(json.dumps({"format": 1, "harness": "0.1"}))
    (tmp_path / "runs" / "work" / "z.jsonl").write_text(jsonl(["a model wrote this"]))
    (tmp_path / "folder.txt").mkdir()
    found = read(tmp_path)
    assert list(found.whole) == PLAIN
    assert (found.files, found.left_out) == (4, ("e.csv", "f.jsonl.zst", "sub/README"))
    with pytest.raises(DataError, match="is a store of the harness"):
        read(tmp_path / "runs")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.zst").write_text("x")
    with pytest.raises(DataError, match=r"holds no .txt, .jsonl or .parquet file; not read: x.zst"):
        read(tmp_path / "only")


def test_plan_says_what_it_has_read(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text(
        jsonl([*(f"{text} {i}" for i in range(20) for text in PLAIN), "", None])
    )
    (tmp_path / "texts" / "b.csv").write_text("x")
    config = make_config(TEXT, **{"data.source": str(tmp_path / "texts")})
    done = harness("plan", config, "--root", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert (
        f"{tmp_path / 'texts'}: 1 file, 1000 documents, 2 empty texts left out, not read: b.csv"
        in done.stdout
    )


def test_empty_texts_are_no_documents_whatever_holds_them(tmp_path: Path) -> None:
    texts = ["one", "", "two", None, "three", ""]
    (tmp_path / "a.jsonl").write_text(jsonl(texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), tmp_path / "b.parquet")
    found = [read(tmp_path / name) for name in ("a.jsonl", "a.parquet", "b.parquet")]
    assert [list(each.whole) for each in found] == [["one", "two", "three"]] * 3
    assert [each.empty for each in found] == [3, 3, 3]
    assert len({each.fingerprint() for each in found}) == 1
    (tmp_path / "none.jsonl").write_text(jsonl(["", None]))
    with pytest.raises(DataError, match=r"holds no text \(1 file, 2 empty texts\)"):
        read(tmp_path / "none.jsonl")
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"holds no text \(1 file, 2 empty texts\)"):
        read(tmp_path / "none.parquet")


def latin(texts: list[str]) -> pa.Array:
    """A column of text whose bytes are Latin-1, which a writer that checks nothing may leave."""
    kept = pa.array([text.encode("latin-1") for text in texts], pa.binary())
    return pa.Array.from_buffers(pa.string(), len(texts), kept.buffers())


READERS: dict[str, Callable[[str], Any]] = {
    "text": lambda path: read_documents(TextData(source=path)).whole,
    "image": lambda path: read_images(ImageData(source=path, kind="images", label_field=None)),
    "x": lambda path: make_truth(ArrayData(source="array", path=path, columns=("x",))),
    "prompt": lambda path: read_conversations(ChatData(kind="chat", source=path, template="none")),
}


@pytest.mark.parametrize("name", READERS)
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, name: str) -> None:
    path, column = str(tmp_path / "a.parquet"), pa.array([1.0] * 20 if name == "x" else ["a"] * 20)
    names = [name, "completion", name]
    pq.write_table(pa.Table.from_arrays([column] * 3, names=names), path)
    with pytest.raises(DataError, match=f"a.parquet has several columns of the name '{name}'; give one"):
        READERS[name](path)
    if name == "image":
        return
    pq.write_table(pa.Table.from_arrays([column] * 4, names=[name, "completion", "other", "other"]), path)
    READERS[name](path)  # what is not read may be there twice
    if name in ("text", "prompt"):
        path, rest = str(tmp_path / "a.jsonl"), '"completion": "b", "other": 1, "other": 2'
        Path(path).write_text("".join(f'{{"{name}": "a{n}", {rest}}}\n' for n in range(20)))
        READERS[name](path)
        with Path(path).open("a") as file:
            file.write(f'{{"{name}": "a", {rest}, "{name}": "c"}}\n')
        with pytest.raises(DataError, match=rf"a.jsonl:21 has the field '{name}' twice; give one"):
            READERS[name](path)
        Path(path).write_text('{"m": [{"role": "user", "content": "a", "content": "b"}]}')
        with pytest.raises(DataError, match=r"a.jsonl:1 has the field 'content' twice; give one"):
            read_conversations(ChatData(kind="chat", source=path, template="none", messages="m"))
    if name == "prompt":
        path = str(tmp_path / "a.csv")
        Path(path).write_text("prompt,completion,prompt\na,b,c\n")
        with pytest.raises(DataError, match=r"a.csv has several columns of the name 'prompt'; give one"):
            READERS[name](path)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"x"}))
def test_text_of_a_parquet_file_that_is_not_utf_8_is_named(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "a.parquet")
    column = latin(["a"] * 1030 + ["caf\xe9"])
    pq.write_table(pa.Table.from_arrays([column] * 2, names=[name, "completion"]), path)
    with pytest.raises(DataError, match=r"a.parquet holds text that is not UTF-8, in rows 1025 to 1031"):
        READERS[name](path)
    pq.write_table(pa.table({name: ["a"]}), path, store_schema=False)
    Path(path).write_bytes(Path(path).read_bytes().replace(name.encode(), name[:-1].encode() + b"\xe9"))
    with pytest.raises(DataError, match="a.parquet is not Parquet: 'utf-8' codec"):
        READERS[name](path)


def test_text_of_the_hub_that_is_not_utf_8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    column = latin(["a", "caf\xe9"])
    rows = datasets.Dataset(pa.table({name: column for name in ("text", "prompt", "completion")}))
    for module in ("documents", "conversations"):
        monkeypatch.setattr(f"harness.data.{module}.load_hub", lambda source, revision: {"train": rows})
    for name, expected in (("text", "in the column 'text'"), ("prompt", "after row 1")):
        with pytest.raises(DataError, match=f"hf:x .*holds text that is not UTF-8,? {expected}"):
            READERS[name]("hf:x")


@pytest.mark.parametrize("rows", [[{"a": 1}], [["a", "b"]], [1, 2], [1.5], [True]])
def test_a_hub_column_that_is_no_text(monkeypatch: pytest.MonkeyPatch, rows: list[Any]) -> None:
    import datasets

    loaded = {"train": datasets.Dataset.from_dict({"text": rows})}
    monkeypatch.setattr("harness.data.documents.load_hub", lambda source, revision: loaded)
    with pytest.raises(DataError, match=f"hf:x has {type(rows[0]).__name__} in the column 'text'"):
        read_documents(TextData(source="hf:x"))


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"a":' * 100_000, "{", "nonsense", '{"text": 1}', '{"other": "x"}', "[1]"]
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(["one"]) + line + "\n")
    with pytest.raises(
        DataError, match=r"data.source: .*a.jsonl:2 (is not JSON|has no text in the field 'text')"
    ):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_git_lfs_pointer_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12\n"
    )
    with pytest.raises(DataError, match=f"{name} is a Git LFS pointer"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"not compressed", gzip.compress(b"x" * 999)[:-9]])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.xz", "a.txt.bz2"])
def test_what_cannot_be_decompressed_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} (cannot be (decompressed|read)|holds no text)"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt.bz2", "a.txt.xz", "a.txt.gz"])
def test_no_part_of_a_compressed_file_is_lost(tmp_path: Path, name: str) -> None:
    """Programs that compress on several processors write many streams: one that is damaged is no end."""
    pack = {"bz2": bz2.compress, "xz": lzma.compress, "gz": gzip.compress}[name.rpartition(".")[2]]
    first, second = pack(b"one\n\n"), pack(b"two\n" * 9999)
    for content, expected in (
        (first + second, ["one", "two\n" * 9998 + "two"]),
        (first + pack(b"") + second + bytes(12), ["one", "two\n" * 9998 + "two"]),
        (first + b"?" + second[1:], None),
        (first + b"and more", None),
        (first + second[:-9], None),
    ):
        (tmp_path / name).write_bytes(content)
        if expected is not None:
            assert list(read(tmp_path / name).whole) == expected
            continue
        with pytest.raises(DataError, match=f"{name} cannot be (decompressed|read)"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.jsonl.gz", "folder"])
def test_nobody_waits_for_a_pipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "x.txt" if name == "folder" else tmp_path / name)
    with pytest.raises(DataError, match="data.source: .* is no regular file, but a pipe, a device or a"):
        read(tmp_path / name)


def test_no_rows_of_a_pipe(tmp_path: Path) -> None:
    for name in ("a.npy", "a.parquet", "a.csv"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="data.path: .* is no regular file"):
        make_truth(ArrayData(source="array", path=str(tmp_path / "a.npy")))
    with pytest.raises(DataError, match="data.path: .* is no regular file"):
        make_truth(ArrayData(source="array", path=str(tmp_path / "a.parquet")))
    with pytest.raises(DataError, match="data.source: .* is no regular file"):
        read_images(ImageData(source=str(tmp_path / "a.npy"), kind="images"))
    with pytest.raises(DataError, match="data.source: .* is no regular file"):
        read_conversations(
            ChatData(kind="chat", source=str(tmp_path / "a.csv"), prompt="p", completion="c", template="none")
        )


def test_documents_of_a_folder_are_never_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that leads nowhere, as git-annex leaves one, is an error; a linked folder is named."""
    folder = tmp_path / "texts"
    (folder / "inside").mkdir(parents=True)
    (folder / "a.jsonl").write_text(jsonl(PLAIN))
    (folder / "more").symlink_to(tmp_path)
    (folder / "notes").symlink_to("nowhere")
    assert read(folder).left_out == ("more/", "notes")
    for target in ("nowhere", "b.jsonl"):
        (folder / "b.jsonl").symlink_to(target)
        with pytest.raises(DataError, match=r"data.source: .*b.jsonl cannot be read"):
            read(folder)
        (folder / "b.jsonl").unlink()
    there = os.scandir

    def closed(path: Any) -> Any:
        if Path(path).name == "inside":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return there(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"data.source: .*inside cannot be read: Permission denied"):
        read(folder)


def test_a_decompression_bomb_is_stopped_at_a_share_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MEMORY_SHARE", 1 << 14)  # a machine of 24 GiB then gives 1.5 MiB
    allowed = usable_memory() // reading.MEMORY_SHARE
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * (allowed + 1)))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"a" * (allowed - 1)))
    pq.write_table(
        pa.table({"text": [f"{i:1000}" for i in range(allowed // 500)]}),
        tmp_path / "c.parquet",
        compression="zstd",
    )
    assert (tmp_path / "c.parquet").stat().st_size < allowed // 100
    for name, expected in (
        ("a.txt.gz", "would bring what is read to more than"),
        ("c.parquet", "says that it has .* rows, which take"),
    ):
        with pytest.raises(DataError, match=f"{name} {expected}"):
            read(tmp_path / name)
    assert len(read(tmp_path / "b.txt.gz").whole) == 1


def claim_rows(path: Path, rows: int) -> None:
    """Change the number of rows in a Parquet footer: thrift's compact protocol has them as varints of zigzag
    numbers."""

    def varint(value: int) -> bytes:
        value, found = value << 1, b""
        while value >= 128:
            found, value = found + bytes([value & 127 | 128]), value >> 7
        return found + bytes([value])

    content = path.read_bytes()
    length = struct.unpack("<I", content[-8:-4])[0]
    body, footer = content[: -8 - length], content[-8 - length : -8].replace(varint(777_777), varint(rows))
    path.write_bytes(body + footer + struct.pack("<I", len(footer)) + b"PAR1")


def test_headers_that_claim_more_than_memory_holds(tmp_path: Path) -> None:
    """A file of a few kilobytes may say that it has 10^12 rows; nothing is allocated for them."""
    pq.write_table(
        pa.table({"text": pa.array(["x"] * 777_777).dictionary_encode(), "x": np.zeros(777_777)}),
        tmp_path / "a.parquet",
    )
    claim_rows(tmp_path / "a.parquet", 10**12)
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_rows == 10**12, "the footer says so"
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 1)}
        )
        file.write(bytes(800))
    with open(tmp_path / "i.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000)}
        )
    sources: list[tuple[Callable[[], Any], str]] = [
        (lambda: read(tmp_path / "a.parquet"), "says that it has 1000000000000 rows"),
        (
            lambda: make_truth(ArrayData(source="array", path=str(tmp_path / "a.parquet"), columns=("x",))),
            "says that it has",
        ),
        (
            lambda: make_truth(ArrayData(source="array", path=str(tmp_path / "a.npy"))),
            "is truncated: .* its header says 8000000000",
        ),
        (lambda: read_images(ImageData(source=str(tmp_path / "i.npy"), kind="images")), "is truncated"),
    ]
    for open_it, expected in sources:
        with pytest.raises(DataError, match=expected):
            open_it()


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("<f8", f"({10**200}, {10**200})", "is truncated: .* its header says more than a file can have"),
        ("<f8", f"({10**400},)", "is truncated"),
        ("<f8", f"(0, {10**200})", "is no .npy file of numbers"),
        ("<f8", f"({10**12}, 0)", r"of shape \(1000000000000, 0\), expected numbers"),
        ("<f8", "(-5, -3)", r"is no .npy file of numbers: its header says float64 of the shape \[-5, -3\]"),
        ("<f8", "(True,)", "is no .npy file of numbers"),
        ("|V0", f"({10**15},)", r"is no .npy file of numbers: its header says \|V0"),
        ("|O", f"({10**13},)", "is no .npy file of numbers: Object arrays"),
        ("<M8[ns]", "(3,)", "holds datetime64"),
        ("<f8", "(" * 150, "is no .npy file of numbers"),
        ("<f8", "-" * 9000 + "1", "is no .npy file of numbers"),
        ("<f8", f"({'9' * 4500},)", "is no .npy file of numbers"),
    ],
    ids=range(12),
)
def test_the_header_of_an_array_may_say_anything(
    tmp_path: Path, kind: str, shape: str, expected: str
) -> None:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(99)
    )
    with pytest.raises(DataError, match=expected) as caught:
        make_truth(ArrayData(source="array", path=str(tmp_path / "a.npy")))
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_an_image_of_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
        header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    for size, expected in (
        (8, None),
        (8192, "8192 x 8192 pixels"),
        (40_000, "40000 x 40000 pixels|exceeds limit"),
    ):
        pq.write_table(pa.table({"image": [png(size, size)] * 4}), tmp_path / "a.parquet")
        config = ImageData(source=str(tmp_path / "a.parquet"), kind="images", label_field=None)
        if expected is None:
            assert read_images(config).train.pixels.shape == (4, size, size)
            continue
        with pytest.raises(DataError, match=expected):
            read_images(config)


GREY = np.array([[0, 1, 100], [200, 254, 255]], np.uint8)
DEEP = np.array([[0, 1, 255], [256, 32768, 65535]], np.uint16)
OF_8_BITS = GREY.astype(np.float32) / np.float32(255)
ALPHA = Image.fromarray(np.array([[0, 255, 255], [255, 255, 255]], np.uint8))


@pytest.mark.parametrize(
    ("pictures", "kind", "expected"),
    [
        ([DEEP], "PNG", DEEP / 65535),
        ([DEEP], "TIFF", DEEP / 65535),
        ([DEEP.astype(">u2")], "TIFF", DEEP / 65535),
        ([GREY.astype(np.uint16)], "PNG", OF_8_BITS),  # 8 bits in files of 16
        ([GREY.astype(np.int32)], "TIFF", OF_8_BITS),
        ([GREY.astype(np.float32)], "TIFF", OF_8_BITS),
        ([(DEEP / 65535).astype(np.float32)], "TIFF", DEEP / 65535),
        ([GREY], "PNG", OF_8_BITS),
        ([GREY > 150], "PNG", GREY > 150),
        ([Image.fromarray(GREY).convert("RGBA")], "PNG", OF_8_BITS),
        ([Image.fromarray(GREY).convert("LA")], "PNG", OF_8_BITS),
        ([Image.fromarray(GREY).convert("CMYK")], "TIFF", OF_8_BITS),
        ([GREY, GREY.astype(np.int32)], "TIFF", OF_8_BITS),
        ([GREY, GREY.astype(np.uint16)], "PNG", OF_8_BITS),
        ([DEEP.astype(np.int32)], "TIFF", "row 0, .*its mode is I and its values go from 0 to 65535"),
        ([GREY - np.float32(300)], "TIFF", "row 0, .*its mode is F and its values go from -300 to -45"),
        ([np.full((2, 3), np.nan, np.float32)], "TIFF", "row 0, .*its mode is F and its values go from nan"),
        ([GREY, DEEP], "PNG", r"8 bits \(row 0\) and 16 bits \(row 1\)"),
        ([GREY, OF_8_BITS], "TIFF", r"8 bits \(row 0\) and floats \(row 1\)"),
        ([Image.merge("LA", (Image.fromarray(GREY), ALPHA))], "PNG", "row 0, .*its mode is LA .*transparent"),
        ([Image.fromarray(GREY).convert("P")], "transparent PNG", "row 0, .*its mode is P .*transparent"),
        ([Image.new("LAB", (3, 2))], "TIFF", "row 0, cannot be decoded: conversion from LAB"),
        ([GREY], "turned PNG", np.rot90(OF_8_BITS, -1)),
        ([DEEP], "turned TIFF", np.rot90(DEEP / 65535, -1)),
        ([GREY], "second GIF", "row 0, cannot be decoded: it has 2 frames; give each a row of its own"),
        ([np.full((8, 8), 200, np.uint8)], "second MPO", np.full((8, 8), np.float32(200) / np.float32(255))),
    ],
    ids=range(26),
)
def test_white_is_white_whatever_a_picture_is_stored_as(
    tmp_path: Path, pictures: list[Any], kind: str, expected: Any
) -> None:
    """Pillow makes 16 bits grey by cutting them off at 255, which is nearly all white."""
    encoded = []
    for picture in pictures:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be seen as it was, it is turned to the right
        special: dict[str, Any] = {
            "transparent": {"transparency": 0},
            "turned": {"exif": exif},
            "second": {"save_all": True, "append_images": [Image.fromarray(255 - GREY)]},
        }
        buffer = io.BytesIO()
        image.save(buffer, kind.split()[-1], **special.get(kind.split()[0], {}))
        encoded.append(buffer.getvalue())
    pq.write_table(pa.table({"image": encoded}), tmp_path / "a.parquet")
    config = ImageData(source=str(tmp_path / "a.parquet"), kind="images", label_field=None)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"data.image_field: .*a.parquet.*{expected}"):
            read_images(config)
        return
    pixels = read_images(config).train.pixels
    assert np.array_equal(pixels, [np.asarray(expected, np.float32)] * len(pictures))


def test_columns_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    frame = pa.table(
        {
            "t": pa.array(np.arange(60), pa.timestamp("us")),
            "x": np.arange(60.0),
            "n": ["a"] * 60,
            "d": [[1]] * 60,
        }
    )
    pq.write_table(frame, tmp_path / "dates.parquet")
    for columns, expected in (
        (None, r"timestamp\[us\] in the column 't'"),
        (("x", "n"), "string in the column 'n'"),
        (("d",), "in the column 'd'"),
        (("y",), "has no column y"),
    ):
        with pytest.raises(DataError, match=f"data.columns: .*{expected}"):
            make_truth(ArrayData(source="array", path=str(tmp_path / "dates.parquet"), columns=columns))
    assert (
        make_truth(ArrayData(source="array", path=str(tmp_path / "dates.parquet"), columns=("x",))).width == 1
    )


@pytest.mark.parametrize(
    ("different", "expected"),
    [
        (1, "there are 500 documents, but all of them are equal"),
        (2, "only 2 of them are different"),
        (500, None),
    ],
)
def test_equal_documents_are_told_from_few(tmp_path: Path, different: int, expected: str | None) -> None:
    (tmp_path / "a.txt").write_text(
        "\n\n".join(f"The same paragraph, number {i % different}." for i in range(500))
    )
    config = TextData(
        source=str(tmp_path / "a.txt"), tokenizer={"kind": "bpe", "vocab_size": 260}, block_size=8
    )  # type: ignore[arg-type]
    (tmp_path / "prepared").mkdir()
    if expected is None:
        prepare(config, read_documents(config), tmp_path / "prepared")
        return
    with pytest.raises(DataError, match=expected):
        prepare(config, read_documents(config), tmp_path / "prepared")


def test_a_metric_that_is_never_finite_is_a_column_of_numbers(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, **{"data.dim": 10, "data.num_examples": 5})
    prepared, store = run_all(config, tmp_path / "root")
    table = ledger.rows(prepared, store).to_arrow()
    never = [name for name in table.column_names if table[name].null_count == len(table) and "/" in name]
    assert never, "five points in ten dimensions have a singular covariance, or the test says nothing"
    assert all(pa.types.is_float64(table.schema.field(name).type) for name in never)
    ledger.write(ledger.rows(prepared, store), "parquet", tmp_path / "t.parquet")
    assert all(pq.read_schema(tmp_path / "t.parquet").field(name).type == pa.float64() for name in never)


def test_data_that_is_prepared_twice_is_the_same(make_config: Make, tmp_path: Path) -> None:
    """A compressed file of a text is that text."""
    content = "\n\n".join(f"{text} {i}" for i in range(20) for text in PLAIN)
    (tmp_path / "a.txt").write_text(content)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content.encode()))
    keys = []
    for name in ("a.txt", "b.txt.gz"):
        prepared, _ = open_prepared(
            make_config(TEXT, **{"data.source": str(tmp_path / name)}), tmp_path / "root"
        )
        keys.append(set(prepared.lineage.nodes))
    assert keys[0] == keys[1]


def test_an_archive_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(9))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    (tmp_path / "o.npy").write_bytes(b"")
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "p.npy").write_bytes(buffer.getvalue())
    for name in ("a.npy", "o.npy", "p.npy"):
        with pytest.raises(DataError, match=f"data.path: .*{name} is no .npy file of numbers"):
            make_truth(ArrayData(source="array", path=str(tmp_path / name)))


def test_lengths_of_time_are_no_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((9, 2), dtype="timedelta64[s]"))
    with pytest.raises(DataError, match=r"data.path: .*a.npy holds timedelta64\[s\] of shape"):
        make_truth(ArrayData(source="array", path=str(tmp_path / "a.npy")))
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"data.path: .*a.parquet has no columns"):
        make_truth(ArrayData(source="array", path=str(tmp_path / "a.parquet")))


# --- every seed its own examples ----------------------------------------------------------------------------


def sources(tmp_path: Path) -> dict[str, dict[str, Any]]:
    text = "\n\n".join(f"{line} {i}" for i in range(20) for line in PLAIN)
    (tmp_path / "text.txt").write_text(text)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(400, 2)))
    return {
        "text": {**TEXT, "data": {**TEXT["data"], "source": str(tmp_path / "text.txt")}},
        "images": {**GAUSSIAN, "learner": {"kind": "vae"}, "data": {"source": "digits", "num_examples": 96}},
        "rows": {
            **GAUSSIAN,
            "data": {"source": "array", "path": str(tmp_path / "rows.npy"), "num_examples": 96},
        },
    }


@pytest.mark.parametrize("kind", ["text", "images", "rows"])
def test_every_seed_has_its_own_examples_where_asked_for(
    make_config: Make, tmp_path: Path, kind: str
) -> None:
    base = sources(tmp_path)[kind]
    plain, _ = open_prepared(make_config(base, "plain.yaml"), tmp_path / "root")
    written, _ = open_prepared(make_config(base, "false.yaml", **{"data.resample": False}), tmp_path / "root")
    own, _ = open_prepared(make_config(base, "own.yaml", **{"data.resample": True}), tmp_path / "root")
    assert written.lineage.nodes.keys() == plain.lineage.nodes.keys(), "the default is in no key"
    assert not own.lineage.nodes.keys() & plain.lineage.nodes.keys()
    assert own.data[0].kept.key == plain.data[0].kept.key, "prepared once for both"
    shared, drawn = plain.data[0].real, own.data[0].real
    supply = drawn.supply
    same = [shared.real(seed, 96).values for seed in (0, 1)]
    assert (same[0] == same[1]).all()
    draws = [drawn.real(seed, 96).values for seed in range(6)]
    assert all((draws[seed] == drawn.real(seed, 200).values[:96]).all() for seed in range(6)), (
        "fewer are a prefix of more"
    )
    whole = drawn.real(3, supply).values
    assert sorted(map(bytes, whole)) == sorted(map(bytes, shared.real(0, supply).values)), (
        "the split, in an order of its own"
    )
    # Two draws of n of N without replacement share n^2 / N examples in the mean; the variance is
    # hypergeometric.
    rows = {bytes(row): index for index, row in enumerate(shared.real(0, supply).values)}
    sets = [{rows[bytes(row)] for row in draw} for draw in draws]
    if len(rows) == supply:
        overlaps = [len(one & other) for index, one in enumerate(sets) for other in sets[:index]]
        mean, variance = 96**2 / supply, 96**2 / supply * (1 - 96 / supply) ** 2 * supply / (supply - 1)
        assert abs(np.mean(overlaps) - mean) < 4 * (variance / len(overlaps)) ** 0.5


@pytest.mark.parametrize("harm", ["changed", "another's", "removed"])
def test_prepared_data_are_checked_when_they_are_loaded(make_config: Make, tmp_path: Path, harm: str) -> None:
    """What lies under a key is what the key says, or it is not read; the next command prepares it anew."""
    config = make_config(sources(tmp_path)["rows"])
    prepared, store = open_prepared(config, tmp_path / "root")
    spec = prepared.specs[0].data
    folder, rows = store.path("data", str(spec.folder)), load_data(spec, store).real(0, 96).values
    np.save(tmp_path / "others.npy", np.ones((400, 2)))
    other, _ = open_prepared(config, tmp_path / "root", f"data.path={tmp_path / 'others.npy'}")
    if harm == "changed":
        np.save(folder / "rows.npy", np.ones((400, 2)))
    else:
        shutil.rmtree(folder)
    if harm == "another's":
        shutil.copytree(store.path("data", str(other.specs[0].data.folder)), folder)
    with pytest.raises(DamagedError, match="prepared data: .*; run the command again"):
        load_data(spec, Store(tmp_path / "root"))
    prepared, store = open_prepared(config, tmp_path / "root")
    assert prepared.specs[0].data == spec
    assert (load_data(spec, Store(tmp_path / "root")).real(0, 96).values == rows).all()


def test_resampling_all_examples_is_refused(make_config: Make, tmp_path: Path) -> None:
    base = sources(tmp_path)["rows"]
    for changes in ({"data.num_examples": None}, {"data.num_examples": 360}):  # a tenth of 400 is held out
        with pytest.raises(InputError, match="data.resample: every seed would train on all 360 examples"):
            open_prepared(make_config(base, **{**changes, "data.resample": True}), tmp_path / "root")
    with pytest.raises(InputError, match="resample"):
        open_prepared(make_config(GAUSSIAN, **{"data.resample": True}), tmp_path / "root")


def test_the_classifier_of_images_reads_each_with_its_own_class(make_config: Make, tmp_path: Path) -> None:
    """Resampled images have another order than the classes."""
    from sklearn.datasets import load_digits

    base = sources(tmp_path)["images"]
    own, _ = open_prepared(make_config(base, **{"data.resample": True}), tmp_path / "root")
    images = own.data[0].real
    digits = load_digits()
    known = {
        bytes((image / 16).astype(np.float32)): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    assert [known[bytes(row)] for row in images.training] == images.labels.tolist()


def test_the_report_says_what_its_intervals_hold(make_config: Make, tmp_path: Path) -> None:
    from harness.reporting.report import variance

    base = sources(tmp_path)["text"]
    said = []
    for name, changes in (
        ("a", {}),
        ("b", {"data.resample": True}),
        ("c", {"grid": {"data.resample": [False, True]}}),
    ):
        prepared, _ = open_prepared(make_config(base, f"{name}.yaml", **changes), tmp_path / "root")
        said.append(variance(prepared))
    closed, _ = open_prepared(make_config(GAUSSIAN, "d.yaml"), tmp_path / "root")
    fits = "differ in initialisation, data order and sampling"
    assert f"{fits}, not in the data" in said[0]
    assert f"{fits}, and in the training examples." in said[1]
    assert "only where data.resample is true" in said[2]
    assert "differ in sampling, and in the training examples." in variance(closed)


@pytest.mark.slow
def test_a_chain_on_resampled_text(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    """What a fit reads is the seed's own part of the split."""
    from safetensors.numpy import load_file

    base = sources(tmp_path)["text"]
    config = make_config(
        base,
        generations=1,
        **{"data.resample": True, "regime.synthetic_ratio": 0.5, "grid": {"seed": [0, 1]}},
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    losses = []
    for chain in prepared.lineage.chains:
        first, last = (prepared.lineage.nodes[key] for key in chain.nodes)
        assert store.complete(last, prepared.lineage.examples[last.corpus])
        losses.append(store.json("fits", first.fit, "fit.json")["log"]["train_loss"])
        index = load_file(store.path("fits", first.fit) / "training_set.safetensors")["index"]
        assert (index == np.arange(96)).all()
    assert losses[0] != losses[1]


def test_a_note_that_is_not_whole_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data.remembered import Note

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    note, other = Note("tokenizer", "a"), Note("tokenizer", "b")
    assert note.read("fingerprint") is None
    note.write({"fingerprint": "f"})
    assert note.read("fingerprint") == {"fingerprint": "f"} and other.read("fingerprint") is None
    assert note.read("fingerprint", "facts") is None
    for torn in ("[]", '{"finger', "{}"):
        next((tmp_path / "fingerprints").iterdir()).write_text(torn)
        assert note.read("fingerprint") is None


def test_docstrings_in_the_order_of_a_whole_walk() -> None:
    """Keys of the standard library's docstrings hold their order, which was that of `ast.walk`."""
    source = """
class A:
    "1"
    def f(self):
        "2"
        with x, (lambda: 0)():
            async def g(): "3"
        for _ in [f for f in y]:
            class B: "4"
        else:
            def h(): "5"
try:
    def i(): "6"
except E:
    def j():
        "7"
        while 1:
            def k(): "8"
else:
    match x:
        case [1, *_] if z:
            def l(): "9"
        case _:
            class C:
                "10"
finally:
    if x:
        @d(lambda: 1)
        def m(a=(b := 1)): "11"
    elif y:
        def n(): "12"
"""
    holders = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for text in (source, Path(inspect.getfile(inspect)).read_text(encoding="utf-8")):
        tree = ast.parse(text)
        found = [node for node in _statements(tree) if isinstance(node, holders)]
        assert found == [node for node in ast.walk(tree) if isinstance(node, holders)] and len(found) > 11


@pytest.mark.parametrize(("count", "said"), [(1, "1 document is too few"), (2, "2 documents are too few")])
def test_how_many_documents_are_too_few(make_config: Make, tmp_path: Path, count: int, said: str) -> None:
    source = tmp_path / "few.txt"
    source.write_text("\n\n".join(f"the {number}th" for number in range(count)))
    with pytest.raises(ConfigError, match=f"data.source: .* split is empty: {said}$"):
        open_prepared(make_config(TEXT, **{"data.source": str(source)}), tmp_path / "root")
