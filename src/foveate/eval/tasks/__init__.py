"""What models are asked: tasks that come with the package, and a user's own file."""

from .bundled import SPLITS, TASKS, TITLES, bundled
from .file import from_file, prompts_in
from .sample import Sample, identity

__all__ = ["SPLITS", "TASKS", "TITLES", "Sample", "bundled", "from_file", "identity", "prompts_in"]
