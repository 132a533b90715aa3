"""What is measured: a model, a precision, and how much of it one turn computes."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Shape:
    """One comparison.

    Attributes:
        model: A preset of the harness.
        precision: ``fp32`` or ``bf16``.
        vocab: Tokens of the vocabulary.
        context: Tokens of a training example, and of a scored one.
        batch: Examples of an optimizer step.
        micro_batch: Examples of one forward pass of a fit.
        steps: Optimizer steps of a turn.
        rows: Texts that are sampled at once.
        new: Tokens of a sampled text.
        scored: Examples that a turn scores.
        zero_stage: DeepSpeed's ZeRO stage; the harness's own choice when None.
        threads: Threads that compute.
    """

    model: str = "tiny"
    precision: str = "fp32"
    vocab: int = 2048
    context: int = 64
    batch: int = 32
    micro_batch: int = 32
    steps: int = 5
    rows: int = 128
    new: int = 64
    scored: int = 512
    zero_stage: int | None = None
    threads: int = 1

    @property
    def label(self):
        """The model, with what of its work is not as usual: different work is not compared."""
        usual = Shape()
        names = ("vocab", "context", "batch", "micro_batch", "rows", "new", "zero_stage")
        given = {name: getattr(self, name) for name in names}
        if self.micro_batch == self.batch:
            del given["micro_batch"]
        odd = [f"{name} {value}" for name, value in given.items() if value != getattr(usual, name)]
        return ", ".join([self.model, *odd])

    def as_dict(self):
        """All fields, for JSON."""
        return asdict(self)


def matrix_flop(model, context, backward):
    """FLOP of matrix products for one token, in a forward pass or in a whole training step.

    A weight of a matrix product costs 2 FLOP a token forward and 4 backward. Those are the weights of all
    linear layers and of the head, tied to the embedding or not; looking up embeddings, biases and norms
    multiply no matrices. Attention multiplies queries with keys and weights with values: 2 x 2 x context x
    width a layer and token forward, and twice that backward, the masked half counted too (Kaplan et al.,
    arXiv 2001.08361, section 2.1; Chowdhery et al., arXiv 2204.02311, appendix B).

    Args:
        model: A causal model of transformers; its weights may lie on the meta device.
        context: Tokens of a text.
        backward: Whether the backward pass is counted too.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    weights = sum(part.weight.numel() for part in model.modules() if isinstance(part, Linear | Conv1D))
    config = model.config
    heads = config.num_attention_heads
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    forward = 2 * weights + 4 * context * width * config.num_hidden_layers
    return forward * 3 if backward else forward
