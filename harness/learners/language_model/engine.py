"""The only module that trains with deepspeed.

Its configuration is derived here, and differences between ZeRO stages end here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.config.schema import Train
from harness.errors import LearnerError
from harness.learners.language_model.adapter import dropouts
from harness.learners.language_model.checkpoint import SafeCheckpointEngine, load_tree
from harness.learners.language_model.compiled import Loss, compile_fit, loss_of
from harness.learners.language_model.distributed import device
from harness.learners.language_model.filling import hidden
from harness.learners.language_model.imports import deepspeed
from harness.learners.language_model.kernels import prepare_fit
from harness.learners.language_model.masters import STATES, Masters
from harness.learners.language_model.sizes import MAX_BUCKET
from harness.proc import give_back


def deepspeed_config(
    train: Train, micro_batch: int, world_size: int, zero_stage: int, parameters: int
) -> dict[str, Any]:
    """DeepSpeed's configuration, derived from ours.

    Args:
        train: The training section.
        micro_batch: Examples per forward pass and rank.
        world_size: Number of ranks.
        zero_stage: ZeRO stage.
        parameters: Parameters of the model: a bucket larger than all of them is memory for nothing.
    """
    bucket = min(parameters + parameters % 2, MAX_BUCKET)  # DeepSpeed wants it even
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.batch_size // (micro_batch * world_size),
        "gradient_clipping": train.max_grad_norm or 0.0,
        # The check looks at every gradient by itself, which takes up to a third of a step on a GPU, and then
        # leaves the step out without a word. A gradient that is not finite ends the fit instead (ADR 17).
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": False},
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "contiguous_gradients": zero_stage > 0,
            "stage3_param_persistence_threshold": 0 if zero_stage == 3 else 100_000,
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


_LINEAR = nn.functional.linear
"""torch's own."""


def restore_linear() -> None:
    """Let linear layers compute what torch does: behind a fit under ZeRO-3, however it has ended.

    ``deepspeed.zero.Init`` replaces ``torch.nn.functional.linear`` for the process. Its own keeps no gathered
    weights for the backward pass, which a fit needs, and rounds a layer with a bias twice. What samples and
    scores later would have other last bits than in a process that fits nothing.
    """
    nn.functional.linear = _LINEAR


class Scattering:
    """Gives each rank its part of a parameter of a model that ZeRO-3 will fit, as soon as there is one.

    It is DeepSpeed's own (``deepspeed.zero.Init``), for a model that is not built under it: what that would
    draw depends on the ranks. All ranks call it with the same parameters in the same order. Who has called it
    calls `restore_linear` in the end.
    """

    def __init__(self, train: Train, world_size: int) -> None:
        """Nothing is scattered.

        Args:
            train: The training section.
            world_size: Number of ranks.
        """
        self._dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        micro_batch = train.batch_size // world_size
        self._config = deepspeed_config(train, micro_batch, world_size, 3, MAX_BUCKET)
        self._first: nn.Parameter | None = None

    def __call__(self, parameter: nn.Parameter) -> None:
        """Scatter a parameter, in the precision of the fit; in its place an empty tensor stays."""
        parameter.data = parameter.data.to(self._dtype)
        if self._first is not None:
            self._first.convert_to_zero_parameters(param_list=[parameter])  # type: ignore[attr-defined]
            return
        holder = nn.Module()
        holder.register_parameter("weight", parameter)
        deepspeed.zero.Init(module=holder, dtype=self._dtype, config_dict_or_path=self._config)
        self._first = parameter


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, also of one that is scattered."""
    found: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return found


class Engine:
    """A DeepSpeed engine for one fit."""

    def __init__(
        self,
        model: PreTrainedModel,
        train: Train,
        micro_batch: int,
        world_size: int,
        zero_stage: int,
        attention: str | None = None,
        recompute: bool = False,
        adapted: bool = False,
        compiled: bool = False,
        stage_asked: bool = True,
    ) -> None:
        """Hand the model to DeepSpeed; weight decay leaves out biases and normalisation.

        Args:
            model: The model, in fp32 or as `Scattering` has left it.
            train: The training section.
            micro_batch: Examples per forward pass and rank.
            world_size: Number of ranks.
            zero_stage: ZeRO stage.
            attention: ``resources.attention``.
            recompute: ``resources.activation_checkpointing``.
            adapted: An adapter is fitted: its weights alone are in `state` and in checkpoints.
            compiled: ``resources.compile``.
            stage_asked: The stage has to be DeepSpeed's. Otherwise one rank in bf16, for which stage 2
                divides nothing, computes the same without it (`Masters`).
        """
        self.adapted, self._dropouts = adapted, dropouts(model) if adapted else []
        decayed = [p for p in model.parameters() if p.requires_grad and len(_shape(p)) >= 2]
        plain = [p for p in model.parameters() if p.requires_grad and len(_shape(p)) < 2]
        groups = [
            {"params": decayed, "weight_decay": train.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.zero_stage = zero_stage
        prepare_fit(model, device(), attention, recompute)
        self.compiled = compiled
        if compiled:
            compile_fit(model, (train.precision, attention, recompute))
        groups = [group for group in groups if group["params"]]
        # torch's AdamW in one kernel: DeepSpeed's own is compiled at first use (see `imports`).
        how: dict[str, Any] = {"lr": train.learning_rate, "betas": train.betas, "eps": train.eps}
        self._masters: Masters | None = None
        if not stage_asked and (zero_stage, world_size, train.precision) == (2, 1, "bf16"):
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16).to(device())
            self._masters = Masters(groups, train.max_grad_norm, **how)
        optimizer = self._masters or torch.optim.AdamW(groups, fused=True, **how)
        count = sum(_shape(p).numel() for p in model.parameters() if p.requires_grad or not adapted)
        config = deepspeed_config(train, micro_batch, world_size, zero_stage, count)
        if self._masters is not None:
            config |= {
                "bf16": {"enabled": False},
                "gradient_clipping": 0.0,
                "zero_optimization": {"stage": 0},
            }
        self._engine, _, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        if self._masters is not None:
            self._engine.enable_backward_allreduce = False
        # DeepSpeed would store a frozen weight under the second of two names that share it.
        named = model.named_parameters(remove_duplicate=False)
        frozen = {name for name, p in named if not p.requires_grad} if adapted else set()
        self._files = self._engine.checkpoint_engine = SafeCheckpointEngine(self._derived, frozen)

    @property
    def module(self) -> PreTrainedModel:
        """The model inside."""
        module: PreTrainedModel = self._engine.module
        return module

    def place(self, seed: int, generation: int, examples: range) -> None:
        """What `logits` reads next: the places of its examples among all that the fit reads.

        By them an adapter's dropout is drawn; the model's own takes the process's generator.
        """
        for dropout in self._dropouts:
            dropout.place(seed, generation, examples)

    def logits(self, tokens: torch.Tensor, fill: int | None = None) -> torch.Tensor:
        """A forward pass: [batch, length] token ids to [batch, length, vocab] logits; see `hidden`."""
        logits: torch.Tensor = self._engine(input_ids=tokens, use_cache=False, **hidden(tokens, fill)).logits
        return logits

    def token_nll(self, tokens: torch.Tensor, loss: Loss, fill: int | None = None) -> torch.Tensor:
        """A forward pass with its loss, for `backward`: token ids to nats, both [batch, length]."""
        if not self.compiled:
            return loss_of(self.logits(tokens, fill), loss)
        found: torch.Tensor = self._engine(input_ids=tokens, loss=loss, **hidden(tokens, fill))
        return found

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one micro batch, and step at the end of a batch."""
        self._engine.backward(loss)
        self._engine.step()

    @property
    def skipped(self) -> bool:
        """Whether DeepSpeed has left out a step because a gradient was not finite.

        Stages 0 and 3 do so in bf16.
        """
        return bool(self._engine.skipped_steps)

    def set_learning_rate(self, value: float) -> None:
        """The learning rate of the next step."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = value

    def state(self, keep: bool) -> Mapping[str, torch.Tensor]:
        """All weights that are fitted on the CPU, gathered from the ranks; collective.

        Args:
            keep: Whether this rank wants them; others get an empty mapping.
        """
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.module.named_parameters():
            if self.adapted and not parameter.requires_grad:
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3):
                if keep:
                    found[name] = parameter.detach().to("cpu", copy=True)
        if keep and not self.adapted:
            persistent = self.module.state_dict().keys()
            found.update(
                (n, b.detach().to("cpu", copy=True))
                for n, b in self.module.named_buffers()
                if n in persistent
            )
        return found

    def _derived(self) -> Mapping[str, Any]:
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return {} if scaler is None else {"loss_scaler": scaler}

    def save(self, folder: Path) -> Sequence[Path]:
        """Write model, optimizer and step counts, collectively; returns the files that this rank wrote."""
        self._engine.save_checkpoint(
            str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=self.adapted
        )
        for script in folder.glob("*.py"):  # DeepSpeed adds converters, which cannot read these files
            script.unlink(missing_ok=True)
        if self._masters is not None:
            self._files.save(self._masters.tree(), str(folder / "engine" / STATES))
        return [Path(name) for name in self._files.written]

    def load(self, folder: Path) -> None:
        """Read what `save` wrote under the same number of ranks and the same ZeRO stage, collectively."""
        found, _ = self._engine.load_checkpoint(
            str(folder), tag="engine", load_module_strict=not self.adapted
        )
        if found is None:
            raise LearnerError(f"DeepSpeed cannot read the checkpoint in {folder}")
        if self._masters is not None:
            self._masters.restore(load_tree(folder / "engine" / STATES))

    def train_mode(self, on: bool) -> None:
        """Switch dropout on or off."""
        self.module.train(on)

    def close(self) -> None:
        """Free what the engine holds, and give linear layers back to torch."""
        restore_linear()
        module, optimizer = self.module, self._engine.optimizer
        self._engine.destroy()
        del self._engine, self._masters
        # Engine, optimizer and model refer to each other, and under ZeRO-3 hooks that the garbage collector
        # does not see through refer to all of them. Without this every fit of a chain would leave its 14 to
        # 20 bytes a parameter behind.
        if self.zero_stage == 3:
            del deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK[:]
            for parameter in module.parameters():
                vars(parameter).clear()
            optimizer.optimizer.state.clear()
            for holder in (optimizer.parameter_offload, optimizer.optimizer, optimizer):
                vars(holder).clear()
        del module, optimizer
        give_back()
