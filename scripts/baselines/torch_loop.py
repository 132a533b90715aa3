"""A plain torch loop: fits a GPT-2 to Python's documentation with fused AdamW; fp32, or weights in bf16.

Usage: python torch_loop.py [--size tiny|small] [--precision fp32|bf16] [--compile] [--epochs N]
"""

import argparse
import time

import torch
from shared import BLOCK, BLOCKS, new_model, read_blocks, with_bos
from torch.nn.functional import cross_entropy


def make_optimizer(model, learning_rate=2e-3):
    """AdamW in one kernel."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)


def step(model, optimizer, inputs, targets, parts=1):
    """One optimizer step on token ids, [batch, length], in so many equal parts; returns the last loss."""
    for read, wanted in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        logits = model(input_ids=read, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
        (loss / parts).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="small", choices=["tiny", "small"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    blocks, _ = read_blocks()
    model = new_model(options.size).train()
    if options.precision == "bf16":
        model = model.bfloat16()
    optimizer = make_optimizer(model)
    run = torch.compile(model) if options.compile else model
    started = time.perf_counter()
    for epoch in range(options.epochs):
        for rows in torch.randperm(BLOCKS).split(32):
            loss = step(run, optimizer, with_bos(blocks[rows]), blocks[rows])
        rate = (epoch + 1) * BLOCKS * BLOCK / (time.perf_counter() - started)
        print(f"epoch {epoch}: loss {loss:.3f}, {rate:,.0f} tokens/s")


if __name__ == "__main__":
    main()
