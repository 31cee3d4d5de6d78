"""Chaos: clients work through the real SDK while a gremlin kills and cuts whatever there is; afterwards everything must be true, whole and owned by somebody.

run ──► clients ──► gate (cuts connections) ──► victim (the server that is killed)
  └───► gremlin ──► sentries, gofers, agents, pool members, holder, victim, gate
  └───► inspection, stores ──► tally (counts, violations)
"""

from corral.chaos.run import Wanted, main

__all__ = ["Wanted", "main"]
