"""VTW: drops all visual tokens at one layer."""

from __future__ import annotations

from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import Cut
from ..core.scores import Even


@checked
def vtw(layer: int = 16) -> Method:
    """Before layer `layer`, drop every visual token.

    Paper: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal", Lin et al.,
    arXiv 2405.05803, `foveate.tune.find_vtw_layer` is its search of K. Checked against the authors'
    code.

    Where: inside the language model; one layer.

    Deviations: none known; no score is involved, since none is kept.

    Args:
        layer: the paper's K, the first layer that runs without visual tokens.

    Raises:
        ValueError: a negative layer.
    """
    return Method(Even(), Cut(layer, 0.0), name=f"vtw:layer={layer}")
