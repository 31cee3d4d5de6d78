"""Frames, streams and messages between a node and the guest agent (docs/wire.md). No I/O."""
