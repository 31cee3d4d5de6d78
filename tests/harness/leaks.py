"""What a home has on the machine, as `corral chaos` looks at it too."""

from corral.chaos.leaks import of_ended_home, of_home, of_sandboxes

__all__ = ["of_ended_home", "of_home", "of_sandboxes"]
