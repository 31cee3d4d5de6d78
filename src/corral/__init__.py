"""Corral: a sandbox cloud for AI agents on any Linux machine."""
