"""The learners' sections, as a study chooses one of them by its ``kind``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from harness.components import LEARNERS
from harness.components.discrete import Discrete
from harness.components.gaussian import Gaussian
from harness.components.kde import Kde
from harness.components.language_model import LanguageModel
from harness.components.linear_regression import LinearRegression
from harness.components.mixture import Mixture
from harness.components.vae import Vae

if TYPE_CHECKING:
    Learner = LanguageModel | Gaussian | Mixture | Kde | Discrete | LinearRegression | Vae
else:
    _SECTIONS = Union[tuple(LEARNERS[kind].section for kind in LEARNERS)]  # noqa: UP007 (made of a list)
    Learner = Annotated[_SECTIONS, Field(discriminator="kind")]
