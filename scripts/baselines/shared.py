"""What the plain programs share: two sizes of GPT-2, and the documentation of Python as blocks of tokens."""

import random
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {"tiny": dict(n_layer=2, n_embd=128, n_head=4), "small": dict(n_layer=4, n_embd=192, n_head=6)}
VOCABULARY, BLOCK, BLOCKS = 2048, 64, 1773
BOS = 0


def new_model(size, seed=0):
    """A GPT-2 without dropout, with random weights in fp32."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        bos_token_id=BOS,
        eos_token_id=BOS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **SIZES[size],
    )
    return GPT2LMHeadModel(config)


def read_blocks():
    """Blocks of token ids, shape [blocks, 64]: 1,773 to train on, and a twentieth of the text to test."""
    texts = [part for name in sorted(topics) for part in topics[name].split("\n\n") if part.strip()]
    random.Random(0).shuffle(texts)
    held_out = len(texts) // 20
    train, test = texts[held_out:], texts[:held_out]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        train,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )

    def pack(documents):
        ids = [token for text in tokenizer.encode_batch(documents) for token in [*text.ids, BOS]]
        return torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)

    blocks = pack(train)
    if len(blocks) < BLOCKS:
        raise SystemExit(
            f"this Python's documentation has {len(blocks)} blocks to train on, {BLOCKS} are needed"
        )
    return blocks[:BLOCKS], pack(test)


def with_bos(blocks):
    """What a model reads so that it predicts all tokens of the blocks: they, shifted behind a first token."""
    return torch.cat([torch.full_like(blocks[:, :1], BOS), blocks[:, :-1]], dim=1)
