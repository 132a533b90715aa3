"""A small sequence classifier in a folder, as transformers writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_classifier(folder: Path, seed: int = 0, kind: str = "Bert", **config: Any) -> Path:
    """A BERT, or one of its kin, with new weights and a tokenizer of bytes."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(["[PAD]", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"id2label": {0: "human", 1: "machine", 2: "both"}, "initializer_range": 0.5}
    torch.manual_seed(seed)
    shape = {"vocab_size": len(alphabet) + 1, "max_position_embeddings": 64, "pad_token_id": 0}
    made = getattr(transformers, f"{kind}Config")(**{**shape, **size, **names, **config})
    getattr(transformers, f"{kind}ForSequenceClassification")(made).save_pretrained(folder)
    return folder
