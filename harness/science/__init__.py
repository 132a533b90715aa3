"""The science of a study: specs, their keys, and the graph of all generations of a grid."""

from __future__ import annotations

from harness.science.branches import Branch, cut
from harness.science.graph import Chain, Lineage, Node, build, chain_nodes, ends, in_order, reachable
from harness.science.keys import KEY_FORMAT, canonical_json, chain_id, key_of
from harness.science.specs import (
    Called,
    CellSpec,
    CorpusSpec,
    DataSpec,
    EvaluationSpec,
    FitSpec,
    Measured,
    Prompts,
    Versioned,
    blank,
    learned_from,
)

__all__ = [
    "Branch",
    "Called",
    "CellSpec",
    "Chain",
    "CorpusSpec",
    "DataSpec",
    "EvaluationSpec",
    "FitSpec",
    "KEY_FORMAT",
    "Lineage",
    "Measured",
    "Node",
    "Versioned",
    "Prompts",
    "blank",
    "build",
    "canonical_json",
    "chain_id",
    "chain_nodes",
    "cut",
    "ends",
    "in_order",
    "key_of",
    "learned_from",
    "reachable",
]
