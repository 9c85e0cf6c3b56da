"""A second device without one: tensors that say they lie elsewhere, and refuse to meet those that do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("lazy")  # a device type that every build of torch knows and none of ours runs on


class Distant(Tensor):
    """A tensor on `FAR`; its numbers are on the CPU."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Distant:
        made = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), dtype=near.dtype, device=FAR
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Distant({self.near!r})"


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation where its tensors lie; those of several elements must lie together."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    far = [isinstance(t, Distant) for t in tensors]
    moves = func is torch.ops.aten._to_copy.default or func is torch.ops.aten.copy_.default
    if not moves and any(far):
        alone = [t for t in tensors if not isinstance(t, Distant) and t.ndim]
        assert not alone, (
            f"{func}: tensors of several devices meet, among them one of shape {tuple(alone[0].shape)}"
        )
    asked = kwargs.get("device")
    there = any(far) if asked is None else torch.device(asked) == FAR
    if func is torch.ops.aten.copy_.default:
        there = far[0]
    kwargs = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    inner = tree_map(lambda t: t.near if isinstance(t, Distant) else t, (args, kwargs))
    found = func(*inner[0], **inner[1])
    same = {id(t.near): t for t in tensors if isinstance(t, Distant)}  # of operations in place
    return tree_map(
        lambda t: same.get(id(t), Distant(t)) if there and isinstance(t, Tensor) else t, found
    )


class TwoDevices(TorchDispatchMode):
    """Inside, what asks for `FAR` gets it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def placed(module: nn.Module, device: torch.device) -> None:
    """Moves a module, with a hook that fetches its inputs as accelerate's does: when its forward runs."""
    for part in module.modules() if device == FAR else ():
        for name, value in [*part._parameters.items()]:
            if value is not None:
                part._parameters[name] = nn.Parameter(Distant(value.detach()), requires_grad=False)
        for name, value in [*part._buffers.items()]:
            if value is not None:
                part._buffers[name] = Distant(value)
    plain = module.forward

    def fetched(*args: Any, **kwargs: Any) -> Any:
        given = tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, (args, kwargs))
        return plain(*given[0], **given[1])

    module.forward = fetched
