"""Fitted models at work: loaded from their folders, they write, and say how likely texts are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from harness.data.text import TextCorpus
from harness.learners.language_model import adapter as adapters
from harness.learners.language_model import model as models
from harness.learners.language_model.distributed import device
from harness.learners.language_model.kernels import fuse_layers
from harness.learners.language_model.sampling import Sampler
from harness.learners.language_model.scoring import score
from harness.learners.language_model.specs import SampleSpec, fitted, text_of
from harness.learners.language_model.verdicts import Questions
from harness.learners.protocol import Control, Execution, Ranks
from harness.metrics.watermark import GreenLists
from harness.records import Examples
from harness.science import CorpusSpec, FitSpec


class Inference:
    """What one rank reads and writes with: the model that was asked for last stays loaded.

    Attributes:
        data: The real text.
        ranks: Those that share the work.
        execution: How it is done.
        device: Where models lie.
    """

    def __init__(self, data: TextCorpus, ranks: Ranks, execution: Execution) -> None:
        """Nothing is loaded yet."""
        self.data, self.ranks, self.execution = data, ranks, execution
        self.device = device()
        self._loaded: tuple[Path | None, PreTrainedModel] | None = None

    def release(self) -> None:
        """Let go of the model that is loaded."""
        self._loaded = None

    def bos(self, spec: FitSpec) -> int | None:
        """The token that every example is read behind; None for none."""
        return int(self.data.meta["bos"]) if text_of(spec).prepend_bos else None

    def model(self, spec: FitSpec, folder: Path | None) -> PreTrainedModel:
        """The fitted model in a folder, the pretrained one where that is None; the last one stays loaded.

        Fits lie side by side, so what an adapter is added to is beside it.
        """
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None
            dtype, places = models.DTYPES[fitted(spec).train.precision], self.execution.models
            if folder is None:
                found = models.to_read(adapters.base_model(spec, None, places, dtype), self.device)
            elif adapters.is_adapter(folder):  # merged: sampling and scoring cost what they cost without one
                base = None if spec.base is None else folder.parent / spec.base
                whole = adapters.whole_model(spec, folder, base, places)
                found = models.to_read(whole, self.device)
            else:
                found = models.read_model(folder, dtype, self.device)
            self._loaded = (folder, fuse_layers(found))
        return self._loaded[1]

    def sampler(self, spec: CorpusSpec, model: PreTrainedModel, control: Control) -> Sampler:
        """What writes a corpus with a model."""
        meta = self.data.meta
        how: SampleSpec = spec.sampling.section
        start = int(meta["bos"]) if how.prompt == "bos" else self.bos(spec.fit)
        vocabulary, mark = int(meta["vocab_size"]), how.watermark
        green = None
        if mark is not None:
            green = GreenLists(spec.fit.seed, vocabulary, mark.gamma, mark.context)
        return Sampler(
            model,
            how,
            start,
            int(meta["eos"]),
            control.tick,
            vocabulary,
            how.context != "whole",
            green,
            how.noted,
            self.data.fill,
        )

    def score(
        self,
        spec: FitSpec,
        folder: Path | None,
        examples: Examples,
        control: Control,
        by_token: bool = False,
        text: bool = False,
        tokens: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Nats per sequence, or by token, under the model in a folder (`model`), the ranks sharing the work.

        Other ``text`` has no prompts in front. With ``tokens`` they are among the first so many.
        """
        model, ranks = self.model(spec, folder), self.ranks
        mine = score(
            model,
            examples,
            self.bos(spec),
            ranks.rank,
            ranks.world_size,
            control.tick,
            0 if text else self.data.prompt_tokens,
            by_token,
            None if text else self.data.fill,
            self.data.fill is not None,
            tokens,
        )
        return self.merged(mine)

    def merged(self, mine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What all ranks have computed; NaN where a rank has not."""
        merged = np.full_like(mine, np.nan)
        for share in self.ranks.gather(mine):
            merged = np.where(np.isnan(share), merged, share)
        return merged

    def questions(self, spec: CorpusSpec) -> Questions | None:
        """How a model is asked about what is written; None where none is."""
        how: SampleSpec = spec.sampling.section
        if how.verdict is None:
            return None
        assert self.data.rendered is not None
        return Questions(how.verdict, self.data.rendered)
