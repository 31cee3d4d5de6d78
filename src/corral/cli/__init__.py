"""The program `corral`: parse, call the client, print. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Errors are one line, `corral: message (hint)`; a wrong use or a missing part of the machine exits with 2, other errors with 1."""
    import typer

    from corral.cli.app import app, help_for
    from corral.cli.options import WrongUse
    from corral.errors import CorralError, SetupError

    if text := help_for(sys.argv[1:]):
        print(text)
        sys.exit(0)
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        status = usage(error)
    except (SetupError, WrongUse) as error:
        status = say(error, 2)
    except CorralError as error:
        status = say(error, 1)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # whoever read us has gone: not our error, and nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        status = say(error, 1)
    except Exception as error:
        if os.environ.get("CORRAL_TRACEBACK"):
            raise
        status = say(Exception(f"a bug: {type(error).__name__}: {error} (CORRAL_TRACEBACK=1 shows where; please report it)"), 1)
    sys.exit(status if isinstance(status, int) else 0)


def say(error: Exception, status: int) -> int:
    """One line for one error."""
    print(f"corral: {error}", file=sys.stderr)
    return status


def usage(error: Exception) -> int:
    """What Typer found wrong with the words of the command line."""
    from typer import Abort

    if isinstance(error, Abort):
        return 130
    message = getattr(error, "format_message", lambda: str(error))()
    status = getattr(error, "exit_code", 2)
    if message and status:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        print(f"corral: {message.rstrip('.')}{hint}", file=sys.stderr)
    return status
