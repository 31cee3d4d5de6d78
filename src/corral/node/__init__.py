"""The engine: one file for each kernel mechanism, and one that says the order. `interface.py` is what the parts promise each other."""
