"""The decoding step of fixed shape is one graph, as a CUDA graph needs it; torch's compiler says so on a CPU.

What has a break cannot be recorded, and what is compiled anew as the text grows depends on its length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.config.schema import Model, Sample
from harness.learners.language_model.cuda import StepReader, can_step
from harness.learners.language_model.drawing import choose
from harness.learners.language_model.model import new_model
from harness.learners.language_model.sampling import TokenReader

ROWS, LENGTH, VOCAB = 3, 24, 61
MODELS = {"gpt2": {}, "llama": {}, "llama, grouped": {"num_kv_heads": 2}}


def small(name: str) -> Any:
    sizes = {"num_layers": 2, "width": 32, "num_heads": 4, "context": LENGTH, **MODELS[name]}
    section = Model(architecture=name.partition(",")[0], **sizes)  # type: ignore[arg-type]
    return new_model(section, VOCAB, LENGTH, 0, 0, seed=1).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}], ids=["plain", "cut"]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_one_graph_for_a_whole_block(name: str, settings: dict[str, Any]) -> None:
    """Read a token, score the next one, choose it: one graph without a break, the same for every position."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    model = small(name)
    assert can_step(model)
    reader, how = StepReader(model, ROWS, LENGTH), Sample(**settings)
    graphs = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def step(token: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return choose(reader._forward(token), uniform, how)

    with torch.no_grad():  # as before it is recorded: the first step of all makes room
        reader._forward(torch.zeros((ROWS, 1), dtype=torch.int64))
    reader.restart()
    dynamo.reset()
    counters.clear()
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=keep)
    numbers = torch.from_numpy(np.random.default_rng(0).random((ROWS, LENGTH)))
    token, plain = torch.zeros((ROWS, 1), dtype=torch.int64), TokenReader(model, cached=True)
    written = []
    with torch.no_grad(), dynamo.config.patch(error_on_recompile=True):
        for position in range(LENGTH):
            expected = choose(plain(token), numbers[:, position], how)
            token = compiled(token, numbers[:, position])[:, None]
            assert torch.equal(token[:, 0], expected), position
            written.append(tuple(token[:, 0].tolist()))
    assert len(set(written)) > LENGTH // 2, "texts that differ, or the step is not asked anything"
    assert len(graphs) == 1 and counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and not counters["recompiles"]
    dynamo.reset()
