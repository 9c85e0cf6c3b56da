"""What models are asked: tasks that come with the package, and a user's own file."""

from .bundled import TASKS, bundled
from .file import from_file
from .sample import Sample, identity

__all__ = ["TASKS", "Sample", "bundled", "from_file", "identity"]
