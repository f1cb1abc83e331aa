"""The planner: what a training run takes on machines one does not have, from formulas.

Memory of each process, seconds of a step, days and price; which layouts fit and which is fastest.
"""
