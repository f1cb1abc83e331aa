"""Several processes that work on one run: how they meet, share the work and add up what they find.

So far all of them are replicas: each holds the whole model and takes its part of every batch. A
process on its own is a mesh of ones and goes the same way.
"""

from puna.parallel.layout import Layout
from puna.parallel.mesh import Mesh, here
from puna.parallel.processes import joined

__all__ = ["Layout", "Mesh", "here", "joined"]
