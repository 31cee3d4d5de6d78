"""Readies a machine for Corral, and explains what it lacks.

`checks.py` lists what a machine must be able to do, in the order in which one thing needs another. `corral setup` (`install.py`) goes through the list and mends; `corral doctor`
(`doctor.py`) goes through the same list and tells.
"""
