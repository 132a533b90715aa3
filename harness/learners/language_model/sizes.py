"""Sizes of a language model by arithmetic alone, so that planning needs no torch.

Parameters, FLOPs, memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.schema import Model

OPT_POSITION_OFFSET = 2
"""OPT's table of positions has two rows more than its context."""


def num_parameters(model: Model, vocab_size: int, context: int) -> int:
    """Parameters of an architecture, tied ones counted once.

    Args:
        model: A resolved model with ``architecture``.
        vocab_size: Tokens.
        context: Rows of the table of positions, where the architecture has one.
    """
    assert model.architecture and model.num_layers and model.width and model.num_heads
    d, layers = model.width, model.num_layers
    m = model.mlp_width or default_mlp_width(model)
    embeddings = vocab_size * d * (1 if model.tie_embeddings else 2)
    if model.architecture == "llama":
        kv = d // model.num_heads * (model.num_kv_heads or model.num_heads)
        return embeddings + layers * (2 * d * d + 2 * d * kv + 3 * d * m + 2 * d) + d
    block = 4 * (d * d + d) + 2 * d * m + m + d + 4 * d
    positions = (context + (OPT_POSITION_OFFSET if model.architecture == "opt" else 0)) * d
    return embeddings + positions + layers * block + 2 * d


def default_mlp_width(model: Model) -> int:
    """Width of the feed-forward layer where none is given.

    4 x width, or 8/3 x width rounded up to 32 for llama.
    """
    assert model.width
    return -(-8 * model.width // 3 // 32) * 32 if model.architecture == "llama" else 4 * model.width


BATCH_TOKENS = 8192
"""Tokens in one forward pass when scoring."""
LIBRARIES = 600 * 2**20
"""Bytes of a rank that has imported everything and computed nothing (docs/LOG.md)."""
CHOICE_BYTES = 30
"""Of an entry of the vocabulary while a token is chosen: fp32 scores twice, fp64 probabilities and sums."""


@dataclass(frozen=True)
class Memory:
    """Bytes per rank: what a fit holds; what sampling and scoring take at their peak, weights included."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    sampling: int
    scoring: int

    @property
    def total(self) -> int:
        """The largest of the three phases, and the libraries."""
        fit = self.weights + self.gradients + self.optimizer + self.activations
        return LIBRARIES + max(fit, self.sampling, self.scoring)


def memory_per_rank(
    parameters: int,
    num_layers: int,
    width: int,
    vocab_size: int,
    tokens: int,
    bf16: bool,
    ranks: int,
    stage: int,
    rows: int,
    length: int,
) -> Memory:
    """Estimate of the memory of one rank.

    The model's states are as in Rajbhandari et al. 2020, arXiv 1910.02054, section 3.

    Args:
        parameters: Parameters of the model.
        num_layers: Its layers.
        width: Coordinates of a hidden state.
        vocab_size: Tokens.
        tokens: Tokens in one forward pass.
        bf16: Weights and gradients in two bytes, with fp32 copies in the optimizer.
        ranks: World size.
        stage: ZeRO stage: 1 shards the optimizer, 2 gradients too, 3 weights too.
        rows: Examples that are sampled together.
        length: Tokens of each, prompt included.
    """
    size = 2 if bf16 else 4
    optimizer = parameters * (12 if bf16 else 8)
    # About 34 bytes a token, layer and unit of width without recomputation (Korthikanti et al. 2022,
    # 2205.05198), and the logits with their gradients.
    activations = tokens * (17 * size * num_layers * width + vocab_size * 2 * size)
    buckets = parameters * size if stage else 0  # where DeepSpeed gathers gradients
    cache = rows * length * num_layers * 2 * width * size
    return Memory(
        weights=parameters * size // (ranks if stage >= 3 else 1),
        gradients=parameters * size // (ranks if stage >= 2 else 1),
        optimizer=optimizer // (ranks if stage >= 1 else 1),
        activations=activations + buckets,
        sampling=parameters * size + cache + rows * vocab_size * CHOICE_BYTES,
        # about six vectors of a layer at a time: its input, queries, keys, values, and the wide one's parts
        scoring=parameters * size + BATCH_TOKENS * size * (vocab_size + 12 * width),
    )
