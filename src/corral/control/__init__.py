"""What the control plane decides, without I/O: the store and the node are given to it (see `ports`)."""
