"""A call of the decoder that can be made again, from any layer on.

The decoder's own forward makes masks and rotations, and adds what families add between layers.
Layers that are not to run pass their rows on; the first that runs is handed the states at which an
earlier run stood.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..assumptions import Names
from ..until import states_of, until


@dataclass(frozen=True)
class DecoderCall:
    """What a model's body called its decoder with.

    Attributes:
        decoder: the language model.
        names: what its class calls its arguments.
        kwargs: all arguments but the hidden states and the cache.
        like: hidden states (B T D) of the call's shape, type and device, without memory of their
            own.
    """

    decoder: Any
    names: Names
    kwargs: dict[str, Any]
    like: Tensor

    @staticmethod
    def of(decoder: Any, names: Names, given: dict[str, Any]) -> DecoderCall:
        """From the arguments as the decoder got them, all by name."""
        embeds: Tensor = given["inputs_embeds"]
        kwargs = names.with_cache(given, None) | {"use_cache": False}
        del kwargs["inputs_embeds"]
        like = embeds.detach().new_zeros(1).expand(embeds.shape)
        return DecoderCall(decoder, names, kwargs, like)

    def run(self, layer: int, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B S D"]:
        """The normalised output of the layers from `layer` on, on these states; of the rows left."""
        with self._from(layer, hidden):
            return self.names.last_state(self.decoder(inputs_embeds=self.like, **self.kwargs))

    def run_until(
        self, layer: int, hidden: Float[Tensor, "B R D"], stop: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """As `run`, up to the layer `stop`: the states that it is called with, and its other
        arguments.
        """
        end = self.decoder.layers[stop]
        with until(end) as caught, self._from(layer, hidden):
            self.decoder(inputs_embeds=self.like, **self.kwargs)
        return states_of(caught[end]), caught[end][1]

    @contextmanager
    def _from(self, layer: int, hidden: Tensor) -> Iterator[None]:
        """Within it a forward of the decoder begins at `layer`, with these states."""
        whole = self.decoder.layers
        passed = [_Passed(before) for before in whole[:layer]]

        def hand(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        with ExitStack() as undo:
            # It is to come before the hooks that whoever calls us has put on this layer.
            handle = whole[layer].register_forward_pre_hook(hand, with_kwargs=True, prepend=True)
            undo.callback(handle.remove)
            undo.callback(setattr, self.decoder, "layers", whole)
            self.decoder.layers = nn.ModuleList([*passed, *whole[layer:]])
            yield


class _Passed(nn.Module):
    """Stands in a layer's place, and gives its input back."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["stands_for"] = layer  # no submodule: it is only asked for what it is

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stands_for"], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states
