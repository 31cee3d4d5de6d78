"""The one error tree. `code` is the stable word on the wire, in the docs and in metrics; `status` its HTTP status.

CorralError
├── RequestError                 the request was wrong (4xx); repeating it unchanged will not help
│   ├── InvalidArgument          invalid_argument 400   (ValueError)
│   ├── Unauthenticated          unauthenticated  401   (PermissionError)
│   ├── Forbidden                forbidden        403   (PermissionError)
│   ├── NotFound                 not_found        404
│   │   ├── FileNotFound         file_not_found   404   (FileNotFoundError)
│   │   └── ImageNotFound        image_not_found  404
│   ├── Conflict                 conflict         409
│   │   ├── FileExists           file_exists      409   (FileExistsError)
│   │   ├── NotADirectory        not_a_directory  409   (NotADirectoryError)
│   │   ├── IsADirectory         is_a_directory   409   (IsADirectoryError)
│   │   └── InvalidState         invalid_state    409   the sandbox is not in a state that allows it
│   ├── AccessDenied             access_denied    403   (PermissionError) the sandbox's own file permissions refuse it
│   ├── TooLarge                 too_large        413
│   ├── NotExecutable            not_executable   422   the program is missing or can't be run
│   ├── Unsupported              unsupported      422   an option that this server or engine can't honour
│   ├── BuildFailed              build_failed     422   a step of an image's build failed; `details` has the step and its output
│   ├── QuotaExceeded            quota_exceeded   429
│   ├── DiskFull                 disk_full        507   (OSError) the sandbox's disk is full
│   └── DeadlineExceeded         timeout          408   (TimeoutError) `partial` holds the output so far
├── PlatformError                Corral or the machine failed (5xx)
│   ├── Unavailable              unavailable      503   (ConnectionError) no server, node lost, or node full: try again
│   ├── SandboxEnded             sandbox_ended    410   the sandbox ended while it was being used; `details.reason` says why
│   ├── SetupError               setup            500   something Corral needs is missing; the hint is the mend
│   └── InternalError            internal         500
└── CommandFailed                raised only by `Result.check()`: the user's program failed; carries the result
"""

from __future__ import annotations

from typing import Any, ClassVar


class CorralError(Exception):
    """Everything Corral raises. `hint` says what to do next; `details` is for programs."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = details or {}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RequestError(CorralError):
    code = "invalid_request"
    status = 400


class InvalidArgument(RequestError, ValueError):
    code = "invalid_argument"
    status = 400


class Unauthenticated(RequestError, PermissionError):
    code = "unauthenticated"
    status = 401


class Forbidden(RequestError, PermissionError):
    code = "forbidden"
    status = 403


class AccessDenied(RequestError, PermissionError):
    code = "access_denied"
    status = 403


class NotFound(RequestError):
    code = "not_found"
    status = 404


class FileNotFound(NotFound, FileNotFoundError):
    code = "file_not_found"


class ImageNotFound(NotFound):
    code = "image_not_found"


class Conflict(RequestError):
    code = "conflict"
    status = 409


class FileExists(Conflict, FileExistsError):
    code = "file_exists"


class NotADirectory(Conflict, NotADirectoryError):
    code = "not_a_directory"


class IsADirectory(Conflict, IsADirectoryError):
    code = "is_a_directory"


class InvalidState(Conflict):
    code = "invalid_state"


class TooLarge(RequestError):
    code = "too_large"
    status = 413


class NotExecutable(RequestError):
    code = "not_executable"
    status = 422


class Unsupported(RequestError):
    code = "unsupported"
    status = 422


class BuildFailed(RequestError):
    """A step of a build failed. `details`: `step` (its number), `text`, `before` (the step above it), `output` (the end of it), `exit_code`."""

    code = "build_failed"
    status = 422


class QuotaExceeded(RequestError):
    code = "quota_exceeded"
    status = 429


class DiskFull(RequestError, OSError):
    code = "disk_full"
    status = 507


class DeadlineExceeded(RequestError, TimeoutError):
    """A timeout. `partial` is the `Result` so far when a command ran out of time; its process is gone."""

    code = "timeout"
    status = 408
    partial: Any = None


class PlatformError(CorralError):
    code = "platform"
    status = 500


class Unavailable(PlatformError, ConnectionError):
    code = "unavailable"
    status = 503


class SandboxEnded(PlatformError):
    code = "sandbox_ended"
    status = 410


class SetupError(PlatformError):
    code = "setup"
    status = 500


class InternalError(PlatformError):
    code = "internal"
    status = 500


class CommandFailed(CorralError):
    """A command ended with a code other than 0 (or by a signal) and the caller asked to be told by `check()`."""

    code = "command_failed"
    status = 500

    def __init__(self, message: str, *, result: Any) -> None:
        super().__init__(message)
        self.result = result


def _tree(cls: type[CorralError]) -> list[type[CorralError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _tree(child))]


BY_CODE: dict[str, type[CorralError]] = {cls.code: cls for cls in _tree(CorralError)}
