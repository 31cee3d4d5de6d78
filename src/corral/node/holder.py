# Paths are plain strings here, since pathlib would cost a third of its memory; starting programs is its work.
# ruff: noqa: PTH108, PTH123, S606, T201
"""The holder: parent of every sentry, keeper of their sockets, so that the server may be killed and started again.

One for each installation. Standard library only, one thread, no state but what it can list; run as `python -I -S holder.py SOCKET LOG`. The starter waits until
the socket listens; the holder itself goes on in a session of its own. It is a child subreaper, so sentries and gofers (which `runsc create` leaves behind)
become its children and their exit statuses are known.

Spoken over a SOCK_SEQPACKET socket, one JSON object for each packet, descriptors by SCM_RIGHTS:

    greeting   {"holder": VERSION, "pid": …}                        or {"busy": pid of the server that is connected}, and the connection is closed
    request    {"n": number, "op": …, …}                            answer {"n": number, "ok": true, …} or {"n": number, "error": text}
      spawn    argv, env, cwd, fds: [target, …] (one for each descriptor sent), join: [cgroup.procs, …], rlimits: {name: value}, oom: oom_score_adj
               → pid, once the program has been executed
      keep     name, descriptors                                    replaces what had that name
      take     name → descriptors (the holder keeps its own)        drop  names
      watch    pids → gone: [pids that are no more]                 their exits will be told and remembered
      forget   pids                                                 their exits are known to the server
      kill     pid, signal                                          only of its own children and watched processes
      list     → held: [names], children: [pids], exits: {pid: status}
      shutdown → kills every child, then the holder leaves
    event      {"exit": pid, "status": wait status, or null for a watched process that was not its child}
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, NoReturn

VERSION = 1
PACKET = 200_000
"""Bytes in a message at most: below the default socket buffer (net.core.wmem_default is 212,992)."""
REMEMBERED = 1024
"""Exits of processes nobody asked about, kept for a `watch` that comes a moment late."""
FDS = 32
PR_SET_CHILD_SUBREAPER = 36


class Refused(Exception):
    """A request that can't be done; the text goes to the server."""


class Holder:
    """The loop and its tables."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.server: socket.socket | None = None
        self.server_pid = 0
        self.held: dict[str, list[int]] = {}
        self.watched: dict[int, int | None] = {}
        """pid → its pidfd when it is not our child."""
        self.foreign: dict[int, int] = {}
        self.starting: dict[int, tuple[int, int]] = {}
        """Read end of a start's error pipe → (request, pid)."""
        self.exits: dict[int, int | None] = {}
        self.recent: dict[int, int] = {}
        self.leaving = False
        self.poll = select.epoll()
        self.wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, noticed)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for fd in (self.wake, listener.fileno()):
            self.poll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        while not (self.leaving and not children()):
            for fd, _ in self.poll.poll():
                if fd == self.wake:
                    os.read(self.wake, 4096)
                    self.reap()
                elif fd == self.listener.fileno():
                    self.accept()
                elif self.server is not None and fd == self.server.fileno():
                    self.receive(self.server)
                elif fd in self.starting:
                    self.started(fd)
                elif fd in self.foreign:
                    self.ended(self.foreign[fd], None)

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        if self.server is not None:
            try:
                connection.send(json.dumps({"busy": self.server_pid}).encode())
            except OSError:
                pass  # it did not wait for the answer
            connection.close()
            return
        self.server = connection
        self.server_pid = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
        # A server that stops reading must not stop the holder: a full buffer counts as a dead server.
        connection.settimeout(0)
        self.poll.register(connection.fileno(), select.EPOLLIN)
        self.send({"holder": VERSION, "pid": os.getpid()})

    def lose(self) -> None:
        if self.server is not None:
            self.poll.unregister(self.server.fileno())
            self.server.close()
            self.server = None

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self.server is None:
            return
        try:
            socket.send_fds(self.server, [json.dumps(message).encode()], fds or [])
        except OSError:
            self.lose()

    def receive(self, server: socket.socket) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(server, PACKET, FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.lose()
            return
        kept = False
        try:
            request = json.loads(data)
            n = int(request["n"])
            try:
                if request["op"] == "spawn":
                    self.spawn(n, request, fds)
                elif request["op"] == "keep":
                    kept = self.keep(str(request["name"]), fds)
                    self.send({"n": n, "ok": True})
                elif request["op"] == "take":
                    name = str(request["name"])
                    if name not in self.held:
                        raise Refused(f"nothing is held under the name {name}")
                    self.send({"n": n, "ok": True}, self.held[name])
                else:
                    self.send({"n": n, "ok": True, **self.do(request)})
            except (Refused, OSError) as error:
                self.send({"n": n, "error": str(error)})
        except (ValueError, KeyError, TypeError) as error:
            self.send({"error": f"bad request: {error!r}"})
        finally:
            if not kept:
                close(fds)

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "drop":
            for name in request["names"]:
                close(self.held.pop(name, []))
            return {}
        if op == "watch":
            return {"gone": [pid for pid in map(int, request["pids"]) if not self.watch(pid)]}
        if op == "forget":
            for pid in request["pids"]:
                self.exits.pop(int(pid), None)
            return {}
        if op == "kill":
            self.kill(int(request["pid"]), int(request["signal"]))
            return {}
        if op == "list":
            return {"held": sorted(self.held), "children": sorted(children()), "exits": self.exits}
        if op == "shutdown":
            self.leaving = True
            self.kill_children()
            return {}
        raise Refused(f"unknown request {op!r}")

    def keep(self, name: str, fds: list[int]) -> bool:
        if not fds:
            raise Refused("no descriptors came with the request")
        close(self.held.pop(name, []))
        self.held[name] = fds
        return True

    def watch(self, pid: int) -> bool:
        """Whether the process lives, or its exit is known and will be told."""
        if pid in children():
            # It has not been reaped: an exit known under its number was an earlier process'. Numbers come again after 32,768 by default, and each thread takes one.
            self.recent.pop(pid, None)
            self.exits.pop(pid, None)
            self.watched.setdefault(pid, None)
            return True
        if pid in self.recent:
            self.watched[pid] = None
            self.ended(pid, self.recent.pop(pid))
            return True
        if pid in self.exits:
            self.send({"exit": pid, "status": self.exits[pid]})
            return True
        if pid in self.watched:
            return True
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return False
        self.watched[pid] = fd
        self.foreign[fd] = pid
        self.poll.register(fd, select.EPOLLIN)
        return True

    def kill(self, pid: int, signum: int) -> None:
        if pid not in self.watched and pid not in children():
            raise Refused(f"process {pid} is neither a child nor watched")
        # Not reaped yet (a child) or held by a pidfd: the number can't have gone to another process.
        fd = self.watched.get(pid)
        try:
            if fd is None:
                os.kill(pid, signum)
            else:
                signal.pidfd_send_signal(fd, signum)
        except ProcessLookupError:
            pass

    def kill_children(self) -> None:
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.leaving:
                # What a dead child leaves behind has just become ours.
                self.kill_children()
            if pid in self.watched:
                self.ended(pid, status)
            else:
                self.recent[pid] = status
                while len(self.recent) > REMEMBERED:
                    del self.recent[next(iter(self.recent))]

    def ended(self, pid: int, status: int | None) -> None:
        for fd, (_, starting) in self.starting.items():
            if starting == pid:
                # The answer to its spawn goes before its exit.
                self.started(fd)
                break
        fd = self.watched.pop(pid, None)
        if fd is not None:
            self.poll.unregister(fd)
            del self.foreign[fd]
            os.close(fd)
        self.exits[pid] = status
        self.send({"exit": pid, "status": status})

    def spawn(self, n: int, request: dict[str, Any], fds: list[int]) -> None:
        targets = [int(fd) for fd in request["fds"]]
        if len(targets) != len(fds):
            raise Refused(f"{len(fds)} descriptors came for {len(targets)} numbers")
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            become(request, dict(zip(targets, fds, strict=True)), error_write)
        os.close(error_write)
        self.recent.pop(pid, None)
        self.exits.pop(pid, None)
        self.watched[pid] = None
        self.starting[error_read] = (n, pid)
        self.poll.register(error_read, select.EPOLLIN)

    def started(self, fd: int) -> None:
        """The error pipe has spoken: closed by exec (good), or with the reason of a failure."""
        n, pid = self.starting.pop(fd)
        text = os.read(fd, 4096)
        self.poll.unregister(fd)
        os.close(fd)
        if text:
            self.send({"n": n, "error": text.decode(errors="replace")})
        else:
            self.send({"n": n, "ok": True, "pid": pid})


def become(request: dict[str, Any], fds: dict[int, int], errors: int) -> NoReturn:
    """In the forked child: everything between fork and exec, in order."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for path in request.get("join", []):
            # Before exec, so that not even the first page is charged elsewhere; "0" is the writer itself.
            with open(path, "w") as procs:
                procs.write("0")
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(int(request.get("oom", 0))))
        for name, value in request.get("rlimits", {}).items():
            limit(getattr(resource, name), int(value))
        os.chdir(request.get("cwd", "/"))
        # Out of the way first: a source may carry the number that another target needs.
        moved = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for target, fd in fds.items()}
        for target, fd in moved.items():
            os.dup2(fd, target, inheritable=True)
        os.execve(request["argv"][0], request["argv"], request.get("env", {}))
    except BaseException as error:
        os.write(errors, f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(127)


def noticed(_number: int, _frame: object) -> None:
    """A handler that does nothing: the byte in the wake-up pipe is what matters."""


def limit(which: int, value: int) -> None:
    """Set a limit, or come as near as a process without CAP_SYS_RESOURCE may."""
    try:
        resource.setrlimit(which, (value, value))
    except ValueError:
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (min(value, hard), hard))


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(pid) for pid in file.read().split()}


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def main(path: str, log: str) -> int:
    """Take the place, listen, go into the background. Exit codes: 0 listening, 3 another holder has the place."""
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another holder has {path}", file=sys.stderr)
        return 3
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.umask(0o177)
    listener.bind(path)
    listener.listen(8)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o022)
    os.chdir("/")
    for fd, file, flags in ((0, "/dev/null", os.O_RDONLY), (1, "/dev/null", os.O_WRONLY), (2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
        opened = os.open(file, flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        return 1
    try:
        # The kernel must take any sandbox before the one that knows them all.
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("-900")
    except PermissionError:
        pass
    Holder(listener).run()
    os.unlink(path)
    os.unlink(path + ".lock")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
