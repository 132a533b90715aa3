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


def kept_values(model: Model) -> int:
    """Numbers that a fit keeps of a token in each layer, for its gradient.

    Inputs and outputs of two norms and of attention, its queries, keys and values (for llama also as they are
    turned), and of the feed-forward layer what goes into each product; Korthikanti et al. 2022, 2205.05198,
    section 4, without dropout.
    """
    assert model.width
    mlp = model.mlp_width or default_mlp_width(model)
    return 11 * model.width + 4 * mlp if model.architecture == "llama" else 9 * model.width + 2 * mlp


SMALL_BATCH = 2048
"""Tokens in one forward pass where examples are few and models large, as where prompts are filled up."""
BATCH_TOKENS = {"cpu": SMALL_BATCH, "cuda": 8192}
"""Tokens in one forward pass when scoring. The last batch of a width is filled up, which should cost little:
on a CPU small ones take hardly longer a token (docs/LOG.md); on a GPU they do."""
ROOM = 32
"""Tokens by which the room for keys and values grows on a CPU; all of it is read, and copied as it grows."""
LIBRARIES = 600 * 2**20
"""Bytes of a rank that has imported everything and computed nothing (docs/LOG.md)."""
COMPILER = 800 * 2**20
"""Bytes of a compiler that a rank has started, and of what it has imported for that (docs/LOG.md)."""
CHOICE_BYTES = 30
"""Of an entry of the vocabulary while a token is chosen: fp32 scores twice, fp64 probabilities and sums."""
MAX_BUCKET = 500_000_000
"""Elements of DeepSpeed's communication buckets, its default."""
MAX_LIVE = 1_000_000_000
"""Parameters that stay gathered under ZeRO-3 between their uses, DeepSpeed's default."""


@dataclass(frozen=True)
class Memory:
    """Bytes per rank: what a fit holds; what sampling and scoring take at their peak, weights included.

    Attributes:
        weights: Of the model, in the precision of the fit.
        gradients: Of these.
        optimizer: Its moments, and fp32 weights where it has its own.
        buffers: Where DeepSpeed gathers gradients, and under ZeRO-3 weights.
        activations: Of a forward pass, for the backward pass.
        step: Gradients in fp32, while a step is made and there are no activations.
        sampling: Weights, cache and choice.
        scoring: Weights and a forward pass.
        compiler: While a fit is compiled, when there are no activations.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    step: int
    sampling: int
    scoring: int
    compiler: int = 0

    @property
    def fit(self) -> int:
        """A fit at its peak."""
        states = self.weights + self.gradients + self.optimizer + self.buffers
        return states + max(self.activations, self.step, self.compiler)

    @property
    def total(self) -> int:
        """The largest of the three phases, and the libraries."""
        return LIBRARIES + max(self.fit, self.sampling, self.scoring)


@dataclass(frozen=True)
class PassSizes:
    """What a rank computes at once.

    Attributes:
        tokens: Tokens in one forward pass of a fit.
        rows: Examples that are sampled together.
        length: Tokens of each, prompt included.
        bf16: Weights and gradients in two bytes, with fp32 copies in the optimizer.
        ranks: World size.
        stage: ZeRO stage.
        recompute: A fit keeps the inputs of layers, and the rest of one layer at a time.
        on_gpu: Otherwise attention is computed in fp32, in bf16 too.
        trained: Parameters that have gradients; all when None.
        reference: A fit holds a second model whole, which only reads.
        compiled: A fit is compiled, by a compiler beside it.
        drift: Two models score, and all that one predicts of a batch is compared with what the other does.
    """

    tokens: int
    rows: int = 1
    length: int = 1
    bf16: bool = True
    ranks: int = 1
    stage: int = 0
    recompute: bool = False
    on_gpu: bool = True
    trained: int | None = None
    reference: bool = False
    drift: bool = False
    compiled: bool = False


def memory_per_rank(
    parameters: int, num_layers: int, width: int, vocab_size: int, kept: int, work: PassSizes
) -> Memory:
    """Estimate of the memory of one rank.

    The model's states are as in Rajbhandari et al. 2020, arXiv 1910.02054, section 3; buffers and the fp32
    gradients of a step are what DeepSpeed 0.19 allocates (tests/test_memory.py).

    Args:
        parameters: Parameters of the model.
        num_layers: Its layers.
        width: Coordinates of a hidden state.
        vocab_size: Tokens.
        kept: From `kept_values`.
        work: What it computes.
    """
    size, ranks, stage = 2 if work.bf16 else 4, work.ranks, work.stage
    own = ranks if stage else 1  # who share the optimizer
    layer = kept * size + (16 * width if work.bf16 and not work.on_gpu else 0)
    layers = num_layers * width * size + layer if work.recompute else num_layers * layer
    trained = parameters if work.trained is None else work.trained
    bucket = min(trained, MAX_BUCKET) * size
    buffers = bucket if stage else 0
    if (
        stage == 3
    ):  # weights stay gathered between their uses; gradients, before they are shared out, and sums
        buffers += min(parameters, MAX_LIVE) * size + 2 * bucket
    # On a CPU keys and values are in fp32 (`kernels.read_by_steps`), and one layer's are copied at a time.
    cache = work.rows * work.length * num_layers * 2 * width * size
    if not work.on_gpu:
        cache = work.rows * -(-work.length // ROOM) * ROOM * (num_layers + 1) * 2 * width * 4
    # about six vectors of a layer at a time: its input, queries, keys, values, and the wide one's parts
    together = max(BATCH_TOKENS["cuda" if work.on_gpu else "cpu"], work.length)
    scoring = parameters * size + together * size * (vocab_size + 12 * width)
    if (
        work.drift
    ):  # hidden states of all layers, and fp32 log-probabilities of both with what they are made of
        scoring += parameters * size + together * (num_layers * width * size + 3 * vocab_size * 4)
    return Memory(
        weights=parameters * size // (ranks if stage >= 3 else 1) + work.reference * parameters * size,
        gradients=trained * size // (ranks if stage >= 2 else 1),
        optimizer=trained * (12 if work.bf16 else 8) // own,
        buffers=buffers,
        activations=work.tokens * (layers + vocab_size * (3 if work.reference else 2) * size),
        step=4 * trained // own,
        sampling=parameters * size + cache + work.rows * vocab_size * CHOICE_BYTES,
        scoring=scoring,
        compiler=COMPILER if work.compiled else 0,
    )
