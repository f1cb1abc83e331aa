"""Several processes that work on one run: how they meet, share the work and add up what they find.

Each holds the whole model, a replica, or the part of it that a `Layout` gives it. A process on its
own is a mesh of ones and goes the same way.
"""

from puna.parallel.layout import Layout
from puna.parallel.mesh import Mesh, here
from puna.parallel.processes import joined

__all__ = ["Layout", "Mesh", "here", "joined"]
