"""What finds a method's numbers."""

from .vtw_search import VTWSearch, find_vtw_layer

__all__ = ["VTWSearch", "find_vtw_layer"]
