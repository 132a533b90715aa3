"""What takes turns: the harness's own code, plain programs, and what the machine could do at best.

Each function sets up, says how much work one of its turns is, and computes it whenever it is told to.
Run as a program with the name of one of them and a `Shape` in JSON.
"""

import json
import os
import sys
import tempfile
import timeit

import numpy as np
import torch

from benchmarks.shape import Shape, matrix_flop
from benchmarks.turns import Turns

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _device():
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _library_model(shape, length=0):
    """The model as transformers makes it, in fp32, on the device."""
    from transformers import AutoModelForCausalLM

    from harness.config.schema import Model
    from harness.learners.language_model.model import transformers_config

    context = max(shape.context, shape.new) + 1 + length
    config = transformers_config(Model(preset=shape.model), shape.vocab, context, 0, 0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(_device())


def _harness_model(shape):
    """The model as the harness makes it, in fp32, on the CPU."""
    from harness.config.schema import Model
    from harness.learners.language_model.model import new_model

    return new_model(Model(preset=shape.model), shape.vocab, max(shape.context, shape.new) + 1, 0, 0, 0)


def _written(shape, rows):
    """Token ids of shape [rows, context], the same for everybody."""
    return np.random.default_rng(0).integers(0, shape.vocab, (rows, shape.context))


def _inputs_and_targets(shape, rows):
    """What a model reads, a first token in front, and what it predicts, both [rows, context]."""
    from shared import with_bos

    targets = torch.from_numpy(_written(shape, rows)).to(_device())
    return with_bos(targets), targets


def matrix_product(shape, turns):
    """Products of two square matrices of random numbers, by the faster of the libraries that torch has."""
    device, dtype = _device(), DTYPES[shape.precision]
    size, count = (8192, 20) if device.type == "cuda" else (1024, 100 if shape.precision == "bf16" else 20)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(one)
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        from harness.config.schema import Model
        from harness.learners.language_model.model import transformers_config

        config = transformers_config(Model(preset=shape.model), shape.vocab, shape.context + 1, 0, 0)
        model = AutoModelForCausalLM.from_config(config)
    flop = matrix_flop(model, shape.context, backward=True)
    products = [lambda: torch.mm(one, other, out=result)]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(one, other, None, "none", [], ""))
    fastest = min(products, key=lambda product: min(timeit.repeat(product, repeat=5, number=count // 5)))
    turns.ready(2 * size**3 * count, fit_flop=flop)
    for _ in turns:
        for _ in range(count):
            fastest()


def harness_fit(shape, turns, compiled=False):
    """The harness's optimizer step."""
    from harness.components.language_model import usual_stage
    from harness.config.schema import Train
    from harness.learners.language_model.distributed import TorchRanks, device, open_store
    from harness.learners.language_model.engine import Engine
    from harness.learners.language_model.training import Trainer
    from harness.records import Examples

    store, _, _ = open_store(1)
    ranks = TorchRanks(0, 1, store, threads=shape.threads)
    train = Train(batch_size=shape.batch, precision=shape.precision, learning_rate=1e-4)
    model = _harness_model(shape)
    stage = usual_stage(1, shape.precision) if shape.zero_stage is None else shape.zero_stage
    asked = shape.zero_stage is not None
    engine = Engine(model, train, shape.micro_batch, 1, stage, compiled=compiled, stage_asked=asked)
    engine.train_mode(True)
    trainer = Trainer(train, shape.micro_batch, stage, 0, ranks, device())
    batch = Examples.full(_written(shape, shape.batch).astype(np.int32))
    turns.ready(shape.steps * batch.values.size)
    step = 0
    for _ in turns:
        for _ in range(shape.steps):
            loss = trainer._step(engine, batch, batch.values.size, 1, 0, step)
            step += 1
        float(loss)
    engine.close()
    ranks.close()


def harness_compiled_fit(shape, turns):
    """The same, compiled."""
    harness_fit(shape, turns, compiled=True)


def plain_fit(shape, turns, compiled=False):
    """The plain loop's optimizer step; in bf16 the weights are bf16."""
    from torch_loop import make_optimizer, step

    model = _library_model(shape).to(DTYPES[shape.precision]).train()
    inputs, targets = _inputs_and_targets(shape, shape.batch)
    optimizer = make_optimizer(model, 1e-4)
    run = torch.compile(model) if compiled else model
    turns.ready(shape.steps * targets.numel())
    for _ in turns:
        for _ in range(shape.steps):
            loss = step(run, optimizer, inputs, targets, shape.batch // shape.micro_batch)
        float(loss)


def compiled_fit(shape, turns):
    """The same, compiled."""
    plain_fit(shape, turns, compiled=True)


def trainer_fit(shape, turns):
    """Steps of Trainer, its data loader included; in bf16 under autocast, as its option does."""
    from trainer_generate import make_trainer
    from transformers import TrainerCallback

    class Stops(TrainerCallback):
        """Waits for the next turn after so many steps."""

        def on_train_begin(self, args, state, control, **_):
            turns.ready(shape.steps * shape.batch * shape.context)
            self.turn = iter(turns)
            return self.wait(control)

        def on_step_end(self, args, state, control, **_):
            return self.wait(control) if state.global_step % shape.steps == 0 else control

        def wait(self, control):
            control.should_training_stop = next(self.turn, "end") == "end"
            return control

    blocks = torch.from_numpy(_written(shape, shape.batch * 50))
    with tempfile.TemporaryDirectory() as folder:
        more = {
            "per_device_train_batch_size": shape.micro_batch,
            "gradient_accumulation_steps": shape.batch // shape.micro_batch,
            "max_steps": 10**6,
            "learning_rate": 1e-4,
        }
        trainer = make_trainer(_library_model(shape), blocks, folder, shape.precision == "bf16", **more)
        trainer.add_callback(Stops())
        trainer.train()


def harness_sample(shape, turns):
    """The harness's sampler: one batch."""
    from harness.config.schema import Sample
    from harness.learners.language_model.kernels import fuse_layers
    from harness.learners.language_model.sampling import Sampler, draw_batch
    from harness.learners.threads import compute_with

    compute_with(shape.threads)  # as every rank does
    model = fuse_layers(_harness_model(shape).to(_device(), DTYPES[shape.precision]).eval())
    sampler = Sampler(model, Sample(), 0, 0, vocab_size=shape.vocab)
    turns.ready(shape.rows * shape.new)
    for _ in turns:
        draw_batch(sampler, None, 0, shape.new, 0, 0, 0, shape.rows)


def generate(shape, turns):
    """The library's generate, as the plain chain calls it."""
    from trainer_generate import sample

    model = _library_model(shape).to(DTYPES[shape.precision])
    turns.ready(shape.rows * shape.new)
    for _ in turns:
        sample(model, shape.rows, shape.new, shape.rows)


@torch.inference_mode()
def forward_steps(shape, turns):
    """The library's model alone, one token a row at a time, with a full-length cache; nothing is chosen."""
    from transformers import StaticCache

    model = _library_model(shape).to(DTYPES[shape.precision]).eval()
    tokens = torch.zeros((shape.rows, shape.new), dtype=torch.int64, device=_device())
    cache = StaticCache(config=model.config, max_cache_len=shape.new)
    turns.ready(tokens.numel())
    for _ in turns:
        cache.reset()
        for position in range(shape.new):
            token = tokens[:, position : position + 1]
            model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


@torch.inference_mode()
def forward_blocks(shape, turns):
    """The library's model alone, whole blocks at once, without a cache."""
    model = _library_model(shape).to(DTYPES[shape.precision]).eval()
    tokens = torch.zeros((shape.rows, shape.new), dtype=torch.int64, device=_device())
    turns.ready(tokens.numel())
    for _ in turns:
        model(input_ids=tokens, use_cache=False)


def ctranslate2(shape, turns):
    """CTranslate2's generator, sampling from the whole distribution."""
    import ctranslate2 as library
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{number}": number for number in range(shape.vocab)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")),
        unk_token="t0",
        bos_token="t0",
        eos_token="t0",
    )
    device = _device().type
    with tempfile.TemporaryDirectory() as folder:
        _library_model(shape).cpu().save_pretrained(folder + "/model")
        tokenizer.save_pretrained(folder + "/model")
        library.converters.TransformersConverter(folder + "/model").convert(folder + "/converted")
        kind = {"fp32": "float32", "bf16": "bfloat16"}[shape.precision]
        model = library.Generator(
            folder + "/converted", device=device, compute_type=kind, intra_threads=shape.threads
        )
    turns.ready(shape.rows * shape.new)
    for _ in turns:
        found = model.generate_batch(
            [["t0"]] * shape.rows,
            max_length=shape.new,
            min_length=shape.new,
            sampling_topk=0,
            include_prompt_in_result=False,
        )
        written = sum(len(one.sequences_ids[0]) for one in found)
        if written != shape.rows * shape.new:
            raise SystemExit(f"CTranslate2 wrote {written} tokens, {shape.rows * shape.new} were asked for")


def vllm(shape, turns):
    """The engine of vLLM, its model compiled, sampling from the whole distribution."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, whose processor seconds are counted
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    import vllm as library

    with tempfile.TemporaryDirectory() as folder:
        _library_model(shape).cpu().save_pretrained(folder)
        engine = library.LLM(
            folder,
            skip_tokenizer_init=True,
            dtype={"fp32": "float32", "bf16": "bfloat16"}[shape.precision],
            max_model_len=shape.new + 1,
            max_num_seqs=shape.rows,
            enable_prefix_caching=False,
        )
    how = library.SamplingParams(temperature=1, max_tokens=shape.new, ignore_eos=True, detokenize=False)
    turns.ready(shape.rows * shape.new)
    for _ in turns:
        found = engine.generate([{"prompt_token_ids": [0]}] * shape.rows, how, use_tqdm=False)
        written = sum(len(one.outputs[0].token_ids) for one in found)
        if written != shape.rows * shape.new:
            raise SystemExit(f"vLLM wrote {written} tokens, {shape.rows * shape.new} were asked for")


def harness_score(shape, turns):
    """The harness's negative log-likelihoods of a corpus."""
    from harness.learners.language_model.kernels import fuse_layers
    from harness.learners.language_model.scoring import score
    from harness.learners.threads import compute_with
    from harness.records import Examples

    compute_with(shape.threads)
    model = fuse_layers(_harness_model(shape).to(_device(), DTYPES[shape.precision]).eval())
    examples = Examples.full(_written(shape, shape.scored).astype(np.int32))
    turns.ready(examples.values.size)
    for _ in turns:
        score(model, examples, 0)


@torch.inference_mode()
def plain_score(shape, turns, loss=True):
    """A forward pass and torch's cross-entropy, in batches of 128 examples."""
    from torch.nn.functional import cross_entropy

    model = _library_model(shape).to(DTYPES[shape.precision]).eval()
    inputs, targets = _inputs_and_targets(shape, shape.scored)
    turns.ready(targets.numel())
    for _ in turns:
        for read, wanted in zip(inputs.split(128), targets.split(128), strict=True):
            logits = model(input_ids=read, use_cache=False).logits
            if loss:
                cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none").sum().item()


def forward_scores(shape, turns):
    """The same forward passes alone, to the logits of every token."""
    plain_score(shape, turns, loss=False)


CONTESTANTS = {
    function.__name__: function
    for function in (
        matrix_product,
        harness_fit,
        harness_compiled_fit,
        plain_fit,
        compiled_fit,
        trainer_fit,
        harness_sample,
        generate,
        forward_steps,
        forward_blocks,
        ctranslate2,
        vllm,
        harness_score,
        plain_score,
        forward_scores,
    )
}


def main():
    turns = Turns()
    shape = Shape(**json.loads(sys.argv[2]))
    torch.set_num_threads(shape.threads)
    CONTESTANTS[sys.argv[1]](shape, turns)


if __name__ == "__main__":
    main()
