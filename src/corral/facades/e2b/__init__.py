"""E2B's protocol, so that its clients work unchanged: the control REST API, and what answers inside a sandbox (docs/from-e2b.md)."""
