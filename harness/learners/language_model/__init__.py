"""Causal language models: transformers architectures, trained through DeepSpeed."""
