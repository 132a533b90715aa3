"""A model's construction, written down without storage and carried out one tensor at a time.

What a constructor does to tensors (makes, draws, scales, copies) is recorded while they lie on the meta
device. `Deferred.fill` does the same, in the same order, with real ones: each that the model keeps is
handed over as soon as nothing more happens to it, so there is never more than a few of them. Random numbers
come from the same generator in the same order as in the ordinary construction, so every weight has the same
bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

Keep = Callable[[nn.Parameter], None]
"""Called with each parameter when it has its values; may replace its storage."""

MAKERS = frozenset(
    {
        torch.empty,
        torch.empty_strided,
        torch.zeros,
        torch.ones,
        torch.full,
        torch.rand,
        torch.randn,
        torch.randint,
        torch.randperm,
        torch.arange,
        torch.linspace,
        torch.logspace,
        torch.eye,
        torch.tril_indices,
        torch.triu_indices,
    }
)
_aten = torch.ops.aten
OVERWRITING = frozenset(
    {
        _aten.normal_.default,
        _aten.uniform_.default,
        _aten.zero_.default,
        _aten.fill_.Scalar,
        _aten.fill_.Tensor,
        _aten.copy_.default,
    }
)
"""What leaves nothing of the values that a tensor had."""


class NotDeferrable(Exception):
    """A construction looks at values on the way, or draws where it cannot be seen."""


def _storage(tensor: torch.Tensor) -> int:
    """Names the storage of a meta tensor that somebody holds."""
    return int(tensor.untyped_storage()._cdata)


def _meta(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.is_meta]


@dataclass(frozen=True)
class _Call:
    """An operation, its arguments, and what it gave; tensors are on the meta device."""

    function: Any
    args: Any
    kwargs: Any
    made: tuple[torch.Tensor, ...]
    result: Any

    def begins(self) -> Iterator[int]:
        """Storages whose values begin here: what is made, and what is overwritten as a whole."""
        yield from map(_storage, self.made)
        if self.function in OVERWRITING:
            target = self.args[0]
            whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
            if (
                whole
                and target.is_contiguous()
                and _storage(target) not in map(_storage, _meta(self.args[1:]))
            ):
                yield _storage(target)


class _OnMeta(TorchFunctionMode):
    """New tensors have no storage.

    Unlike ``torch.device("meta")`` this is no default device, by which a library could see that its weights
    need no values.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in MAKERS and given.get("device") is None:
            given["device"] = torch.device("meta")
        return func(*args, **given)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what happens to tensors without storage."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given, found = _meta((args, kwargs)), _meta(result)
        if given or found:
            known = set(map(_storage, given))
            made = tuple(tensor for tensor in found if _storage(tensor) not in known)
            if made or func._schema.is_mutable:
                args, kwargs = tree_map(_constant, (args, kwargs))
                self.calls.append(_Call(func, args, kwargs, made, result))
        return result


def _constant(leaf: Any) -> Any:
    """A real tensor as it is now; everything else as it is."""
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) and not leaf.is_meta else leaf


class Deferred:
    """A model without storage, and how its values come about."""

    def __init__(self, build: Callable[[], PreTrainedModel]) -> None:
        """Record a construction.

        Args:
            build: Constructs the model.

        Raises:
            NotDeferrable: It cannot be done without values.
        """
        recorder, before = _Recorder(), torch.get_rng_state()
        try:
            with _OnMeta(), recorder:
                self.model = build()
        except Exception as error:  # whatever a constructor raises that looks at values which are not there
            raise NotDeferrable(f"{type(error).__name__}: {error}") from None
        if not torch.equal(torch.get_rng_state(), before):
            torch.set_rng_state(before)
            raise NotDeferrable("it draws numbers outside of its weights")
        self._calls = recorder.calls
        self._check()

    def _check(self) -> None:
        storages = [_storage(parameter) for parameter in self.model.parameters()]
        if len(set(storages)) < len(storages):
            raise NotDeferrable("two parameters share their memory")
        for name, part in self.model.named_modules():
            if _meta([value for value in vars(part).values() if isinstance(value, torch.Tensor)]):
                raise NotDeferrable(f"{name} holds a tensor that is neither a parameter nor a buffer")

    def fill(
        self, device: torch.device, keep: Keep, values: Mapping[str, Callable[[], torch.Tensor]] | None = None
    ) -> None:
        """Give the model its values.

        Args:
            device: Where buffers end.
            keep: Told of every parameter, in the order in which they are done.
            values: How to read parameters and buffers by name, in place of what the construction gives them.

        Raises:
            NotDeferrable: Real tensors lie otherwise in memory than the recorded ones did.
        """
        places, real = _Places(self.model, device, keep, values or {}), dict[int, torch.UntypedStorage]()
        ends = self._ends()
        with torch.no_grad():
            for number, call in enumerate(self._calls):
                _carry_out(call, real)
                for storage, is_last in ends.get(number, ()):
                    values_of_it = real.pop(storage)
                    if is_last:
                        places.take(storage, values_of_it)
        if any(tensor.is_meta for tensor in (*self.model.parameters(), *self.model.buffers())):
            raise NotDeferrable("not all of its weights are given values")
        for part in self.model.modules():
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = buffer.to(device)

    def _ends(self) -> Mapping[int, list[tuple[int, bool]]]:
        """After which call the values of which storages are not needed any more, and whether for good.

        Values end where the next call on the storage overwrites them as a whole.
        """
        uses: dict[int, list[tuple[int, bool]]] = {}
        for number, call in enumerate(self._calls):
            begins = set(call.begins())
            for storage in begins | set(map(_storage, _meta((call.args, call.kwargs)))):
                uses.setdefault(storage, []).append((number, storage in begins))
        ends: dict[int, list[tuple[int, bool]]] = {}
        for storage, calls in uses.items():
            for (number, _), (_, anew) in itertools.pairwise(calls):
                if anew:
                    ends.setdefault(number, []).append((storage, False))
            ends.setdefault(calls[-1][0], []).append((storage, True))
        return ends


def _carry_out(call: _Call, real: dict[int, torch.UntypedStorage]) -> None:
    """Do a recorded call with real tensors."""

    def value(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.is_meta:
            storage = _storage(leaf)
            if storage not in real:  # it is about to be overwritten
                real[storage] = torch.empty(
                    leaf.untyped_storage().nbytes(), dtype=torch.uint8
                ).untyped_storage()
            return _view(leaf, real[storage])
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    args, kwargs = tree_map(value, (call.args, call.kwargs))
    result = tree_leaves(call.function(*args, **kwargs))
    made = set(map(id, call.made))
    for there, here in zip(tree_leaves(call.result), result, strict=True):
        if id(there) in made:
            if (there.shape, there.stride(), there.dtype) != (here.shape, here.stride(), here.dtype):
                raise NotDeferrable(f"{call.function} gives {here.shape}, {there.shape} was recorded")
            real[_storage(there)] = here.untyped_storage()


def _view(recorded: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    """What a tensor without storage would be on a real one."""
    place: Any = (storage, recorded.storage_offset(), recorded.shape, recorded.stride())
    return torch.empty(0, dtype=recorded.dtype).set_(*place)


class _Places:
    """Where the parameters and buffers of a model without storage belong."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        keep: Keep,
        values: Mapping[str, Callable[[], torch.Tensor]],
    ) -> None:
        self._device, self._keep, self._values = device, keep, values
        self._parameters: dict[int, list[tuple[nn.Module, str, str]]] = {}
        self._buffers: dict[int, list[tuple[nn.Module, str, str]]] = {}
        for prefix, part in model.named_modules():
            for found, tensors in ((self._parameters, part._parameters), (self._buffers, part._buffers)):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.is_meta:
                        full = f"{prefix}.{name}" if prefix else name
                        found.setdefault(_storage(tensor), []).append((part, name, full))

    def take(self, storage: int, values: torch.UntypedStorage) -> None:
        """A storage is done; a parameter that several modules hold stays one."""
        for part, name, full in self._buffers.get(storage, ()):
            recorded = part._buffers[name]
            assert recorded is not None
            read = self._values.get(full)
            part._buffers[name] = _view(recorded, values) if read is None else read().to(recorded.dtype)
        owners = self._parameters.get(storage, ())
        if not owners:
            return
        recorded = owners[0][0]._parameters[owners[0][1]]
        assert recorded is not None
        readers = [self._values[full] for _, _, full in owners if full in self._values]
        tensor = readers[0]().to(recorded.dtype) if readers else _view(recorded, values)
        parameter = nn.Parameter(tensor, requires_grad=recorded.requires_grad)
        vars(parameter).update(vars(recorded))
        for part, name, _ in owners:
            part._parameters[name] = parameter
        self._keep(parameter)
