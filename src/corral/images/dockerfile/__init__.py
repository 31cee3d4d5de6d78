"""Dockerfiles: `syntax` reads lines, `words` fills in variables, `instructions` makes steps, `stages` says which are needed. No I/O."""
