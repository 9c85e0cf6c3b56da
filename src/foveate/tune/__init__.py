"""What finds a method's numbers."""

from ..artefacts.weighting import Weighting
from .fitprune import FitPruneFit, fit_prune
from .search.search import Data, Search, find_schedule
from .vtw_search import VTWSearch, find_vtw_layer

__all__ = [
    "Data",
    "FitPruneFit",
    "Search",
    "VTWSearch",
    "Weighting",
    "find_schedule",
    "find_vtw_layer",
    "fit_prune",
]
