"""What the guest agent's error codes mean to a caller."""

from __future__ import annotations

from corral.errors import (
    AccessDenied,
    Conflict,
    CorralError,
    DiskFull,
    FileExists,
    FileNotFound,
    InvalidArgument,
    InvalidState,
    IsADirectory,
    NotADirectory,
    NotExecutable,
    PlatformError,
    QuotaExceeded,
    TooLarge,
    Unavailable,
    Unsupported,
)
from corral.wire.messages import Problem

_FILE: dict[str, tuple[type[CorralError], str, str | None]] = {
    "ENOENT": (FileNotFound, "does not exist", None),
    "EEXIST": (FileExists, "exists already", "pass overwrite=true (or exclusive=false) to replace it"),
    "ENOTEMPTY": (Conflict, "is a directory that is not empty", "pass recursive=true to remove it with everything in it"),
    "ENOTDIR": (NotADirectory, "is not a directory, or a part of it is not", None),
    "EISDIR": (IsADirectory, "is a directory", "list it, or use the tree endpoints for whole directories"),
    "EACCES": (AccessDenied, "may not be used: permission denied", None),
    "EPERM": (AccessDenied, "may not be used: operation not permitted", None),
    "EROFS": (AccessDenied, "is on a read-only file system", "write somewhere else, such as /tmp or the home directory"),
    "ELOOP": (InvalidArgument, "goes through too many symbolic links", "look for a link that leads back to itself"),
    "ENAMETOOLONG": (InvalidArgument, "is too long", "a path has at most 4095 bytes, each name in it 255"),
    "EINVAL": (InvalidArgument, "can't be used for that", None),
    "ENOSPC": (DiskFull, "can't be written: the sandbox's disk is full", "remove files, or create the sandbox with a larger disk"),
    "EDQUOT": (DiskFull, "can't be written: the sandbox's disk is full", "remove files, or create the sandbox with a larger disk"),
    "EFBIG": (TooLarge, "would be too large", None),
    "ETXTBSY": (Conflict, "is a program that is running", "end it first, or write beside it and move it over"),
    "EBUSY": (Conflict, "is in use", None),
    "EXDEV": (Unsupported, "is on another file system", "copy it instead"),
    "ESPIPE": (InvalidArgument, "is not a regular file", "run a command, such as cat, for pipes and devices"),
    "ENXIO": (InvalidArgument, "is not a regular file", "run a command, such as cat, for pipes and devices"),
    "ENODEV": (InvalidArgument, "is not a regular file", "run a command, such as cat, for pipes and devices"),
    "EOPNOTSUPP": (Unsupported, "can't do that: its file system does not support it", None),
}

_ANY: dict[str, tuple[type[CorralError], str | None]] = {
    "EPROTO": (InvalidArgument, None),
    "ENOUSER": (InvalidArgument, "name a user of /etc/passwd, `user:group`, or numbers such as 1000:1000"),
    "E2BIG": (TooLarge, "pass large arguments in a file"),
    "EAGAIN": (QuotaExceeded, "the sandbox may not have more processes or open channels; end some, or create it with a larger `pids`"),
    "ENOMEM": (QuotaExceeded, "the sandbox is out of memory; create it with more"),
    "EMFILE": (QuotaExceeded, "too many files are open in the sandbox"),
    "ENFILE": (QuotaExceeded, "too many files are open in the sandbox"),
    "ENOSYS": (Unsupported, "the sandbox was started by an older Corral; create a new one"),
    "ESRCH": (InvalidState, "look at the process' exit status"),
    "ECANCELED": (InvalidState, None),
    "ECONNREFUSED": (Conflict, "is the server inside listening on that port yet?"),
    "ETIMEDOUT": (Unavailable, "try again"),
}


def shown(name: bytes) -> str:
    """A guest's name for a message: bytes that are not UTF-8 become U+FFFD, a very long one is shortened."""
    text = name.decode(errors="replace")
    return text if len(text) <= 200 else f"{text[:120]}…({len(name)} bytes)"


def about_file(code: str, path: bytes) -> CorralError | None:
    """What an errno's name means of a file; None when it is none of those that a caller can do something about."""
    if (known := _FILE.get(code)) is None:
        return None
    kind, what, hint = known
    return kind(f"`{shown(path)}` {what}", hint=hint, details={"errno": code})


def refusal(problem: Problem, path: bytes | None = None) -> CorralError:
    """The error of a request about `path` (or about what the agent says)."""
    about = problem.path if problem.path is not None else path
    details = {"errno": problem.code}
    if about is not None and (told := about_file(problem.code, about)):
        return told
    if known := _FILE.get(problem.code):
        kind, _, hint = known
        return kind(f"the sandbox answers: {problem.message or problem.code}", hint=hint, details=details)
    if problem.code in _ANY:
        kind, hint = _ANY[problem.code]
        return kind(_sentence(problem), hint=hint, details=details)
    return PlatformError(f"the sandbox answers {problem.code}: {_sentence(problem)}", details=details)


def start_refusal(problem: Problem, program: bytes, cwd: bytes | None) -> CorralError:
    """Why a process could not be started."""
    details = {"errno": problem.code}
    if cwd is not None and problem.path == cwd and problem.code in {"ENOENT", "ENOTDIR", "EACCES", "ELOOP", "ENAMETOOLONG"}:
        why = {"ENOENT": "does not exist", "ENOTDIR": "is not a directory", "EACCES": "may not be entered by this user"}.get(problem.code, "can't be used")
        kind = {"ENOENT": FileNotFound, "ENOTDIR": NotADirectory, "EACCES": AccessDenied}.get(problem.code, InvalidArgument)
        return kind(f"the working directory `{shown(cwd)}` {why}", hint="create it first, or pass another cwd", details=details)
    name = shown(problem.path if problem.path is not None else program)
    match problem.code:
        case "ENOENT":
            hint = "is it installed in the image, and its interpreter too? A name without a slash is looked up in PATH"
            return NotExecutable(f"`{name}` was not found", hint=hint, details=details)
        case "EACCES" | "EPERM":
            return NotExecutable(f"`{name}` may not be executed by this user", hint="chmod +x it, or run it with its interpreter", details=details)
        case "EISDIR" | "ENOTDIR":
            return NotExecutable(f"`{name}` is not a program", hint="name an executable file", details=details)
        case "ENOEXEC" | "ELIBBAD":
            hint = "it needs a first line such as #!/bin/sh, or it was built for another machine"
            return NotExecutable(f"`{name}` is not in a form that can be executed", hint=hint, details=details)
        case "ETXTBSY":
            return NotExecutable(f"`{name}` is being written", hint="try again when it is complete", details=details)
        case "ELOOP" | "ENAMETOOLONG":
            return NotExecutable(f"`{name}` can't be looked up ({problem.code})", hint="name an executable file", details=details)
        case _:
            return refusal(problem)


def _sentence(problem: Problem) -> str:
    return problem.message[:2000] or problem.code
