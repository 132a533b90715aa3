"""Tracking: records mirrored to Weights & Biases. The store is the truth; nothing is ever read back."""

from harness.tracking.mirror import ChainView, GenerationView, Mirror, run_id

__all__ = ["ChainView", "GenerationView", "Mirror", "run_id"]
