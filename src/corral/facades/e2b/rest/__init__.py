"""E2B's control plane: its REST API in versions 1, 2 and 3 side by side, as its clients use them."""
