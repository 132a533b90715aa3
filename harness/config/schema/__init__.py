"""The configuration: frozen pydantic models, one per section of the YAML file.

Fields that belong to the science enter the keys; a field marked `execution()` never does. A science field at
the default that it had when it was introduced is left out of the key, so that a field added later changes no
old key: a changed default keeps its ``introduced`` value.
"""

from __future__ import annotations

from harness.components.discrete import Discrete
from harness.components.filters import DeduplicateFilter, LabelFilter, RepetitionFilter, VerifierFilter
from harness.components.gaussian import Gaussian
from harness.components.images import ImageData, ImageSplit
from harness.components.kde import Kde
from harness.components.language_model import LanguageModel, Train
from harness.components.linear_regression import LinearRegression
from harness.components.mixture import Mixture
from harness.components.model import Model
from harness.components.sampling import Sample
from harness.components.text import BpeTokenizer, PretrainedTokenizer, Split, TextData
from harness.components.truths import (
    AnalyticData,
    ArrayData,
    Component,
    DiscreteData,
    GaussianData,
    LinearData,
    MixtureData,
    ShapeData,
)
from harness.components.vae import Vae, VaeSample, VaeTrain
from harness.config.schema.data import NOTHING_THERE, Data, data_kind, unknown_source
from harness.config.schema.learners import Learner
from harness.config.schema.population import Member, Population
from harness.config.schema.regimes import (
    CellSource,
    CorpusSource,
    Evaluate,
    Filter,
    Growth,
    ModelSource,
    Refresh,
    Regime,
    RegimeKind,
)
from harness.config.schema.run import Claim, Config, Override, Resources, Retention, Statistic, Tracking
from harness.section import PositiveInt, Seconds, Section, Share, execution, science, since

__all__ = [
    "AnalyticData",
    "ArrayData",
    "BpeTokenizer",
    "CellSource",
    "Claim",
    "Component",
    "Config",
    "CorpusSource",
    "Data",
    "DeduplicateFilter",
    "Discrete",
    "DiscreteData",
    "Evaluate",
    "Filter",
    "Gaussian",
    "GaussianData",
    "Growth",
    "ImageData",
    "ImageSplit",
    "Kde",
    "LabelFilter",
    "LanguageModel",
    "Learner",
    "LinearData",
    "LinearRegression",
    "Mixture",
    "MixtureData",
    "Member",
    "Model",
    "ModelSource",
    "Override",
    "Population",
    "PositiveInt",
    "PretrainedTokenizer",
    "Refresh",
    "Regime",
    "RegimeKind",
    "RepetitionFilter",
    "Resources",
    "Retention",
    "Sample",
    "Seconds",
    "Section",
    "ShapeData",
    "Share",
    "Split",
    "Statistic",
    "TextData",
    "Tracking",
    "Train",
    "Vae",
    "VaeSample",
    "VaeTrain",
    "VerifierFilter",
    "NOTHING_THERE",
    "execution",
    "data_kind",
    "unknown_source",
    "science",
    "since",
]
