"""What `generate` leaves on a model when it compiles the decode step."""

from __future__ import annotations

from typing import Any

LEFT = ("_compiled_call", "_last_compile_config", "_previous_max_cache_length")


class Compiled:
    """What a model had of it before hooks were put on.

    Args:
        model: the whole.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.before = {name: vars(model)[name] for name in LEFT if name in vars(model)}

    def put_back(self) -> None:
        """Gives the model what it had, and takes away what has come since."""
        for name in LEFT:
            vars(self.model).pop(name, None)
        vars(self.model).update(self.before)
