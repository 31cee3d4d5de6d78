"""Egress: what a sandbox may reach. The decisions (`policy`), and the process that holds connections and names to them (`edge`)."""
