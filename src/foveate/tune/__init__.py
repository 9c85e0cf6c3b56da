"""What finds a method's numbers."""

from .fitprune import FitPruneFit, fit_prune
from .vtw_search import VTWSearch, find_vtw_layer

__all__ = ["FitPruneFit", "VTWSearch", "find_vtw_layer", "fit_prune"]
