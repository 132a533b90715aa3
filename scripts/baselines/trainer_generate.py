"""One chain with Hugging Face's Trainer and generate: fit, sample, mix with real blocks, fit again.

Usage: python trainer_generate.py [--size tiny|small] [--ratio R] [--generations G] [--bf16]
"""

import argparse
import json
import tempfile

import torch
from shared import BLOCK, BOS, new_model, read_blocks, with_bos
from transformers import Trainer, TrainingArguments

BATCH, ROWS = 32, 128
READ = 1000
"""Sampled blocks that an evaluation reads."""


class Blocks(torch.utils.data.Dataset):
    """Blocks of token ids as Trainer wants them."""

    def __init__(self, blocks):
        self.inputs, self.targets = with_bos(blocks), blocks

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        # The loss takes shift_labels as they are; Trainer asks for labels too.
        return {"input_ids": self.inputs[row], "labels": self.inputs[row], "shift_labels": self.targets[row]}


def make_trainer(model, blocks, folder, bf16=False, epochs=3, **more):
    """A Trainer as one would set it up: no files, no reports, the defaults for the rest."""
    arguments = dict(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=ROWS,
        num_train_epochs=epochs,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.2,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),  # bf16 asks for a GPU otherwise
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return Trainer(model=model, args=TrainingArguments(**{**arguments, **more}), train_dataset=Blocks(blocks))


@torch.inference_mode()
def sample(model, count, length=BLOCK, rows=ROWS):
    """Blocks that the model writes, shape [count or a few more, length]: whole batches."""
    model.eval()
    start = torch.full((rows, 1), BOS, device=model.device)
    model.generation_config.eos_token_id = None  # an end of text is a token like any other
    batches = [
        model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            max_new_tokens=length,
            pad_token_id=BOS,
        )[:, 1:]
        for _ in range(-(-count // rows))
    ]
    return torch.cat(batches).cpu()


def chain(size, ratio, generations, folder, bf16=False):
    """Fits generations 0..G; yields each one's losses (nats a token)."""
    torch.set_num_threads(1)
    real, test = read_blocks()
    written = round(ratio * len(real))
    training, first = real, None
    for generation in range(generations + 1):
        trainer = make_trainer(new_model(size, seed=generation), training, folder, bf16)
        trainer.train()
        if first is None:
            first = trainer
        last = generation == generations
        corpus = sample(trainer.model, READ if last else max(READ, written))
        read = Blocks(corpus[:READ])
        pairs = set(
            zip(corpus[:READ, :-1].flatten().tolist(), corpus[:READ, 1:].flatten().tolist(), strict=True)
        )
        yield {
            "generation": generation,
            "test/nll": trainer.evaluate(Blocks(test))["eval_loss"],
            "self/nll": trainer.evaluate(read)["eval_loss"],
            "gen0/nll": first.evaluate(read)["eval_loss"],
            "distinct_2": len(pairs) / (READ * (BLOCK - 1)),
        }
        kept = torch.randperm(len(real))[: len(real) - written]
        training = torch.cat([corpus[:written], real[kept]])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="small", choices=["tiny", "small"])
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for result in chain(options.size, options.ratio, options.generations, folder, options.bf16):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
