"""A description of a folder of Parquet files that other tools read: Croissant 1.1 (MLCommons), as JSON-LD.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.errors import HarnessError
from harness.files import file_sha256

VERSION = "http://mlcommons.org/croissant/1.1"
PARQUET = "application/x-parquet"
_TERMS = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field"),
    *("fileProperty", "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset"),
    *("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
    *("replace", "samplingRate", "separator", "source", "subField", "transform"),
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
"""Of the specification, appendix 1, and of PROV-O for what data are derived from."""


@dataclass(frozen=True)
class Table:
    """Parquet files of one schema.

    Attributes:
        name: What its records are called.
        files: From the folder of the description.
        schema: Their columns.
        about: What a record is.
        columns: What the columns mean, as far as that is to be said.
    """

    name: str
    files: Sequence[Path]
    schema: pa.Schema
    about: str
    columns: Mapping[str, str]


def describe(
    folder: Path, name: str, about: str, tables: Sequence[Table], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The description of a folder.

    Args:
        folder: Where the files are.
        name: Of the data set.
        about: What it is.
        tables: Its files.
        more: Other properties of the data set, such as ``license`` and ``prov:wasDerivedFrom``.
    """
    files = [_file(folder, path) for table in tables for path in table.files]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": f"{table.name}-files",
            "name": f"{table.name}-files",
            "encodingFormat": PARQUET,
            "includes": _pattern(table),
        }
        for table in tables
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": name,
        "description": about,
        "version": "1.0.0",
        **more,
        "distribution": [*files, *sets],
        "recordSet": [_records(table) for table in tables],
    }


def _file(folder: Path, path: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path.as_posix(),
        "name": path.name,
        "contentUrl": path.as_posix(),
        "contentSize": f"{(folder / path).stat().st_size} B",
        "encodingFormat": PARQUET,
        "sha256": file_sha256(folder / path),
    }


def _pattern(table: Table) -> str:
    """Matches the files of a table, and no other's."""
    places = {path.parent.as_posix() for path in table.files}
    if len(places) != 1:
        raise HarnessError(f"the files of {table.name} must lie in one folder, found {sorted(places)}")
    return f"{places.pop()}/*.parquet"


def _records(table: Table) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": table.name,
        "name": table.name,
        "description": table.about,
        "field": [_field(table, column) for column in table.schema],
    }


def _field(table: Table, column: pa.Field) -> dict[str, Any]:
    kind, found = column.type, dict[str, Any]()
    if pa.types.is_list(kind):
        kind, found = kind.value_type, {"isArray": True, "arrayShape": "-1"}
    if column.name in table.columns:
        found["description"] = table.columns[column.name]
    return {
        "@type": "cr:Field",
        "@id": f"{table.name}/{column.name}",
        "name": column.name,
        "dataType": _type(kind),
        **found,
        "source": {"fileSet": {"@id": f"{table.name}-files"}, "extract": {"column": column.name}},
    }


def _type(kind: pa.DataType) -> str:
    for matches, name in (
        (pa.types.is_boolean, "sc:Boolean"),
        (pa.types.is_integer, "sc:Integer"),
        (pa.types.is_floating, "sc:Float"),
    ):
        if matches(kind):
            return name
    return "sc:Text"
