"""The key of a step's result: a digest of what it stands on, what it says, and the files it takes. Nothing else: not when, not where, not who."""

from __future__ import annotations

import hashlib
import json

from corral.schema.image import Copy, Run, Step

VERSION = 2
"""Raise it when the same step would make something else."""


def base_key(kind: str, *words: str) -> str:
    """Of a source."""
    return _digest("source", kind, *words)


def step_key(parent: str, step: Step, inputs: str) -> str:
    """`inputs`: a digest of the files that a copy or a bind takes."""
    match step:
        case Run():
            # How long it may take, and that it was to be done anew, changes nothing in what it makes; caches hold nothing that counts.
            text = step.model_dump(mode="json", exclude={"timeout", "force", "caches", "binds"}) | {
                "binds": [[bind.target, bind.source] for bind in step.binds]
            }
        case Copy():
            text = step.model_dump(mode="json", exclude={"upload", "image"})
        case _:
            text = step.model_dump(mode="json")
    return _digest("step", parent, json.dumps(text, sort_keys=True), inputs)


def image_id(project: str, key: str) -> str:
    """The id of the image with this key: the same whenever and wherever the project builds it."""
    number = int.from_bytes(hashlib.sha256(f"{project}\0{key}".encode()).digest()[:10], "big")
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    return "im-" + "".join(alphabet[(number >> shift) & 31] for shift in range(0, 80, 5))


def describe(step: Step) -> str:
    """One line for a person."""
    match step:
        case Run(command=command):
            text = command if isinstance(command, str) else " ".join(command)
            return f"run {text}"
        case Copy():
            what = " ".join([*step.sources, *(file.name for file in step.files)])
            return f"copy {what} {step.target}"
        case _:
            given = step.model_dump(mode="json", exclude={"do"}, exclude_none=True)
            return f"{step.do} " + ", ".join(f"{name}={value}" for name, value in given.items())


def _digest(*words: str) -> str:
    digest = hashlib.sha256(f"{VERSION}".encode())
    for word in words:
        raw = word.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(raw) + raw)
    return digest.hexdigest()
