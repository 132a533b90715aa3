"""Tracking: records mirrored to Weights & Biases. The store is the truth; nothing is ever read back."""

from harness.records import GenerationView
from harness.tracking.mirror import BusyError, Mirror, held, patience_s
from harness.tracking.runs import ChainView, LoginError, Sent, Server, connect, run_id, send_chain

__all__ = [
    "BusyError",
    "ChainView",
    "GenerationView",
    "LoginError",
    "Mirror",
    "Sent",
    "Server",
    "connect",
    "held",
    "patience_s",
    "run_id",
    "send_chain",
]
