"""What the vision tower made of pictures, for methods that look at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..core.tower import Layer
from .rows import Share


class Sights:
    """What the tower made of each picture that vLLM's encoder cache holds."""

    @staticmethod
    def of(model: Any, config: Any, layers: Sequence[Layer]) -> Sights | None:
        """Watches these layers of the tower; None if there are none.

        Raises:
            ValueError: the tower is not of a form whose attention can be read.
        """
        if not layers:
            return None
        raise ValueError("methods that look at the vision tower are not supported inside vLLM yet")

    def attach(self, runner: Any) -> None:
        """Puts the hooks on."""

    def look_of(self, share: Share) -> Callable[[Any, Any, Tensor], Tensor] | None:
        """What a view of this request may look at."""
        return None
