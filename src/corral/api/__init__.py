"""The HTTP API: one file for each resource. Translates between requests and `control`; decides nothing."""
