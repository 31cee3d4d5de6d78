"""Runs inside a sandbox, sent there by `corral.code.start`: owns one Jupyter kernel for one context. The guest's own python needs jupyter_client and the kernel.

Orders come as JSON lines on standard input, what happens goes as JSON lines to standard output (`corral.code.lines` reads them). The first line of the
input is an object that holds this very text and that of the Python kernel's program. Executions are done one after another, in the order they came.
One long file, since it is sent as one text.
"""

# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false, reportUndefinedVariable=false, reportOptionalOperand=false

import asyncio
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque

LINE = 8 << 20
"""Characters of one result; of a larger one the largest parts are left out, by name and size."""
PIECE = 64 << 10
"""Characters of one piece of text."""
QUEUE = 256
"""Executions that may wait in one context."""
START_SECONDS = 120.0
GRACE = 5.0
"""Seconds from the interrupt of an execution that ran out of time to the end of its kernel."""
PRCTL = ctypes.CDLL(None).prctl
LONGEST_PAUSE = 10.0
"""Seconds between interrupts of what does not heed them."""


def say(kind, **fields):
    line = {"t": kind, **fields}
    try:
        text = dumped(line)
    except ValueError:  # it has numbers that JSON has not
        text = dumped(json.loads(json.dumps(line, default=str), parse_constant=lambda _: None))
    data = memoryview(text.encode("utf-8", "replace") + b"\n")
    while data:
        data = data[os.write(1, data) :]


def dumped(line):
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


class Unable(Exception):
    """This context can't be, for the reason given."""


class Kernel:
    """One kernel process and the client's end of its sockets."""

    def __init__(self, language, program):
        self.language = language
        self.directory = tempfile.mkdtemp(prefix="code-")
        self.gone = asyncio.Event()
        self.client = None
        self.messages_interrupt = False
        argv, env, transport = self._command(program)
        self._start(argv, env, transport)

    def _command(self, program):
        env = dict(os.environ)
        if self.language == "python":
            path = os.path.join(self.directory, "kernel.py")
            with open(path, "w") as file:
                file.write(program)
            return [sys.executable, path, "-f", "{connection_file}"], env, "ipc"
        from jupyter_client.kernelspec import KernelSpecManager

        spec = chosen(KernelSpecManager(ensure_native_kernel=False).get_all_specs(), self.language)
        if spec is None:
            raise Unable(f"this image has no Jupyter kernel for {self.language}")
        self.messages_interrupt = spec.get("interrupt_mode") == "message"
        env.update({"NO_COLOR": "1", "DENO_UNSTABLE_BARE_NODE_BUILTINS": "true", **spec.get("env", {})})
        return spec["argv"], env, "ipc" if spec["language"] == "bash" else "tcp"

    def _start(self, argv, env, transport):
        name = os.path.join(self.directory, "connection.json")
        if transport == "ipc":
            self.file, self.info = name, connection(os.path.join(self.directory, "s"))
            with open(name, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                json.dump(self.info, file)
        else:
            from jupyter_client.connect import write_connection_file

            self.file, self.info = write_connection_file(name, ip="127.0.0.1", transport=transport)
        argv = [arg.format(connection_file=self.file) if "{connection_file}" in arg else arg for arg in argv]
        with open(os.path.join(self.directory, "log"), "wb") as log:
            try:
                self.process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_us)  # noqa: PLW1509 - it takes no lock
            except OSError as error:
                raise Unable(f"the kernel for {self.language} can't be started: {error}") from None
        self.watch = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self):
        await asyncio.get_running_loop().run_in_executor(None, self.process.wait)
        self.gone.set()

    async def connect(self):
        """Until it answers."""
        # Here, and not before: the kernel starts meanwhile, which takes as long as this import.
        from jupyter_client import AsyncKernelClient

        deadline = time.monotonic() + START_SECONDS
        if self.info["transport"] == "ipc":
            # A socket that is connected before it is there tries again only after a tenth of a second.
            missing = [f"{self.info['ip']}-{self.info[name]}" for name in ("shell_port", "iopub_port", "control_port")]
            while missing and not self.gone.is_set() and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
                missing = [path for path in missing if not os.path.exists(path)]
        client = self.client = AsyncKernelClient()
        client.load_connection_info(self.info)
        client.start_channels(hb=False, stdin=False)
        while time.monotonic() < deadline and not self.gone.is_set():
            request = client.kernel_info()
            try:
                await within(1.0, self._answer(client, request))
                await within(0.1, self._heard(client))
                return
            except TimeoutError:
                pass
        raise Unable(f"the kernel for {self.language} did not start: {self.log()}")

    async def _answer(self, client, request):
        while (await client.get_shell_msg())["parent_header"].get("msg_id") != request:
            pass

    async def _heard(self, client):
        # What it publishes before we are known to it is lost; once anything has come, everything comes.
        while (await client.get_iopub_msg())["msg_type"] != "status":
            pass

    def log(self):
        with open(os.path.join(self.directory, "log"), "rb") as file:
            lines = file.read()[-2000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with {self.process.poll()}" if self.gone.is_set() else "it does not answer"

    def send(self, code, *, silent=False, metadata=None):
        content = {"code": code, "silent": silent, "store_history": not silent, "user_expressions": {}, "allow_stdin": False, "stop_on_error": False}
        message = self.client.session.msg("execute_request", content, metadata=metadata)
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def interrupt(self):
        if self.messages_interrupt:
            self.client.control_channel.send(self.client.session.msg("interrupt_request", {}))
        else:
            self._kill(signal.SIGINT)

    def kill(self):
        self._kill(signal.SIGKILL)

    def _kill(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    async def end(self):
        """Kill it and all in its group, and remove what it needed."""
        self.kill()
        await self.watch
        if self.client is not None:
            self.client.stop_channels()
        shutil.rmtree(self.directory, ignore_errors=True)


def connection(place):
    """What the kernel and its client must know of each other, as jupyter_client writes it: sockets at `place` and a number."""
    ports = {f"{name}_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
    return {**ports, "ip": place, "transport": "ipc", "key": secrets.token_hex(16), "signature_scheme": "hmac-sha256", "kernel_name": ""}


def die_with_us():
    """In a new process: be killed when the one that started it ends, however that comes."""
    PRCTL(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def chosen(specs, language):
    """The kernel for a language: by its own name, else by what it says it runs. TypeScript's also runs JavaScript."""
    wanted = [language, "typescript"] if language == "javascript" else [language]
    for word in wanted:
        for name, found in sorted(specs.items()):
            spec = found["spec"]
            if word in (name.lower(), spec["language"].lower()):
                return spec
    return None


async def within(seconds, doing):
    return await asyncio.wait_for(doing, seconds)


class Execution:
    def __init__(self, order):
        self.id = order["id"]
        self.code = order["code"]
        self.env = order.get("env") or {}
        self.timeout = order.get("timeout")
        self.sent = None
        self.reply = None
        self.idle = asyncio.Event()
        self.replied = asyncio.Event()
        self.stopping = None
        self.status = None
        self.error = False


class Driver:
    """Orders in, lines out: one execution at a time, a new kernel after each one that ended."""

    def __init__(self, language, program):
        self.language = language
        self.program = program
        self.kernel = None
        self.queue = deque()
        self.waiting = asyncio.Event()
        self.current = None
        self.known = {}
        self.restarting = None

    async def run(self):
        while True:
            await self._begin()
            died = await self._serve()
            await self.kernel.end()
            if self.restarting is not None:
                order, self.restarting = self.restarting, None
                await self._begin_again(order)
            else:
                say("died", code=died)

    async def _begin(self):
        if self.kernel is not None and not self.kernel.gone.is_set():
            return
        self.kernel = Kernel(self.language, self.program)
        await self.kernel.connect()
        await self._silent(WARM.get(self.language, ""))
        say("ready", pid=self.kernel.process.pid)

    async def _begin_again(self, order):
        for execution in self.queue:
            say("end", id=execution.id, status="restarted", seconds=0.0)
        self.queue.clear()
        await self._begin()
        say("restarted", id=order["id"])

    async def _silent(self, code):
        if not code:
            return
        execution = Execution({"id": None, "code": code})
        execution.sent = self.kernel.send(code, silent=True)
        self.known = {execution.sent: execution}
        reading = [asyncio.ensure_future(self._shell()), asyncio.ensure_future(self._iopub())]
        done = asyncio.ensure_future(asyncio.gather(execution.idle.wait(), execution.replied.wait()))
        gone = asyncio.ensure_future(self.kernel.gone.wait())
        await asyncio.wait([done, gone, *reading], return_when=asyncio.FIRST_COMPLETED)
        for task in (done, gone, *reading):
            task.cancel()
        await asyncio.gather(done, gone, *reading, return_exceptions=True)

    async def _serve(self):
        """Until the kernel has gone."""
        tasks = [asyncio.ensure_future(each) for each in (self._shell(), self._iopub(), self._executions(), self.kernel.gone.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks[:3]:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            while True:  # what it published before its end
                await within(0.1, self._next())
        except TimeoutError:
            pass
        code = self.kernel.process.poll()
        if (execution := self.current) is not None:
            self.current = None
            if self.restarting is None and execution.status is None:
                how = f"ended by signal {-code}" if code < 0 else f"ended with {code}"
                say("error", id=execution.id, name="KernelDied", value=f"the kernel {how}; its variables are gone", traceback=[])
            self._stopped(execution, "restarted" if self.restarting else execution.status or "died", code=code)
        return code

    async def _executions(self):
        while True:
            while not self.queue:
                self.waiting.clear()
                await self.waiting.wait()
            self.current = execution = self.queue.popleft()
            await self._execute(execution)
            self.current = None

    async def _execute(self, execution):
        say("begin", id=execution.id)
        execution.began = time.monotonic()
        around = AROUND.get(self.language) if execution.env else None
        if execution.env and around is None and self.language != "python":
            say("error", id=execution.id, name="Unsupported", value=f"env: not possible for {self.language}", traceback=[])
            self._stopped(execution, "error")
            return
        if around is not None:
            await self._aside(around[0](execution.env))
        execution.sent = self.kernel.send(execution.code, metadata={"env": execution.env} if execution.env and around is None else None)
        self.known[execution.sent] = execution
        while len(self.known) > QUEUE:
            del self.known[next(iter(self.known))]
        timer = None
        if execution.timeout is not None:
            timer = asyncio.get_running_loop().call_later(execution.timeout, self._stop, execution, "timeout")
        await asyncio.gather(execution.replied.wait(), execution.idle.wait())
        if timer is not None:
            timer.cancel()
        if around is not None:
            await self._aside(around[1](execution.env))
        reply = execution.reply or {}
        if reply.get("status") == "error" and not execution.error:
            self._error(execution, reply)
        self._stopped(execution, execution.status or ("error" if reply.get("status") == "error" else "ok"), count=reply.get("execution_count"))

    async def _aside(self, code):
        aside = Execution({"id": None, "code": code})
        aside.sent = self.kernel.send(code, silent=True)
        self.known[aside.sent] = aside
        await asyncio.gather(aside.replied.wait(), aside.idle.wait())
        del self.known[aside.sent]

    def _stopped(self, execution, status, *, code=None, count=None):
        if execution.stopping is not None:
            execution.stopping.cancel()
        say("end", id=execution.id, status=status, seconds=time.monotonic() - execution.began, code=code, count=count)

    # what the kernel says

    async def _shell(self):
        while True:
            message = await self.kernel.client.get_shell_msg()
            execution = self.known.get(message["parent_header"].get("msg_id"))
            if execution is not None and message["msg_type"] == "execute_reply":
                execution.reply = message["content"]
                execution.replied.set()

    async def _iopub(self):
        while True:
            await self._next()

    async def _next(self):
        message = await self.kernel.client.get_iopub_msg()
        execution = self.known.get(message["parent_header"].get("msg_id"))
        if execution is not None:
            self._published(execution, message["msg_type"], message["content"])

    def _published(self, execution, kind, content):
        if kind == "status":
            if content["execution_state"] == "idle":
                execution.idle.set()
        elif execution.id is None:
            pass
        elif kind == "stream":
            text, at = content["text"], time.time_ns()
            for start in range(0, len(text), PIECE):
                say(content["name"], id=execution.id, text=text[start : start + PIECE], at=at)
        elif kind in ("display_data", "execute_result", "update_display_data"):
            data, omitted = fitting(content["data"])
            say("result", id=execution.id, main=kind == "execute_result", data=data, omitted=omitted)
        elif kind == "execute_input":
            say("count", id=execution.id, count=content["execution_count"])
        elif kind == "error":
            self._error(execution, content)

    def _error(self, execution, content):
        execution.error = True
        trace = [str(line)[:PIECE] for line in content.get("traceback", [])[-200:]]
        say("error", id=execution.id, name=str(content.get("ename") or "Error")[:1000], value=str(content.get("evalue"))[:PIECE], traceback=trace)

    # orders

    def order(self, line):
        order = json.loads(line)
        if order["op"] == "execute":
            execution = Execution(order)
            if len(self.queue) >= QUEUE:
                say("end", id=execution.id, status="refused", seconds=0.0)
                return
            self.queue.append(execution)
            self.waiting.set()
        elif order["op"] == "stop":
            self._stop_named(order["id"])
        elif order["op"] == "restart":
            self.restarting = order
            self.kernel.kill()

    def _stop_named(self, id):
        if self.current is not None and id in (None, self.current.id):
            self._stop(self.current, "interrupted")
        for execution in list(self.queue):
            if execution.id == id:
                self.queue.remove(execution)
                say("end", id=id, status="interrupted", seconds=0.0)

    def _stop(self, execution, status):
        if execution is self.current and execution.status is None:
            execution.status = status
            execution.stopping = asyncio.ensure_future(self._interrupt(kill=status == "timeout"))

    async def _interrupt(self, *, kill):
        """Again and again: the first may come before the kernel has begun, and code may catch it."""
        kernel, pause, spent = self.kernel, 0.2, 0.0
        while True:
            kernel.interrupt()
            await asyncio.sleep(pause)
            spent += pause
            pause = min(2 * pause, LONGEST_PAUSE)
            if kill and spent >= GRACE:
                kernel.kill()
                return


def fitting(data):
    """What of a result may be sent, and the sizes of what may not."""
    sizes = {kind: len(value) if isinstance(value, str) else len(json.dumps(value, default=str)) for kind, value in data.items()}
    omitted = {}
    while sum(sizes.values()) > LINE:
        largest = max(sizes, key=lambda kind: sizes[kind])
        omitted[largest] = sizes.pop(largest)
    return {kind: data[kind] for kind in sizes}, omitted


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def bash_before(env):
    saved = [f'if [ -n "${{{name}+x}}" ]; then __was_{name}="${name}"; else unset __was_{name}; fi; export {name}={quoted(env[name])}' for name in env]
    return "; ".join(saved)


def bash_after(env):
    return "; ".join(f'if [ -n "${{__was_{name}+x}}" ]; then export {name}="$__was_{name}"; else unset {name}; fi' for name in env)


def deno_before(env):
    given = json.dumps(env)
    return f"globalThis.__was = Object.fromEntries(Object.keys({given}).map(n => [n, Deno.env.get(n)])); for (const [n, v] of Object.entries({given})) Deno.env.set(n, v); undefined"


def deno_after(env):
    return "for (const [n, v] of Object.entries(globalThis.__was)) v === undefined ? Deno.env.delete(n) : Deno.env.set(n, v); undefined"


DENO = ("deno", "javascript", "typescript")
AROUND = {"bash": (bash_before, bash_after), **dict.fromkeys(DENO, (deno_before, deno_after))}
WARM = {"python": "None", **dict.fromkeys(DENO, "undefined")}


async def main(language, program):
    driver = Driver(language, program)
    loop = asyncio.get_running_loop()
    rest = bytearray()

    def take(data):
        rest.extend(data)
        while (end := rest.find(b"\n")) >= 0:
            line = bytes(rest[:end])
            del rest[: end + 1]
            driver.order(line)

    over = loop.create_future()

    def readable():
        try:
            data = os.read(0, 1 << 20)
        except BlockingIOError:
            return
        if data:
            take(data)
        else:
            loop.remove_reader(0)
            over.set_result(None)

    os.set_blocking(0, False)
    # What was read together with the first line.
    take(sys.stdin.buffer.peek())  # pyright: ignore[reportAttributeAccessIssue]
    loop.add_reader(0, readable)
    running = asyncio.ensure_future(driver.run())
    await asyncio.wait([over, running], return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        pass
    finally:
        if driver.kernel is not None:
            await driver.kernel.end()


try:
    asyncio.run(main(sys.argv[1], given["kernel"]))  # noqa: F821 - set by the line that starts this
except ImportError as error:
    say("unable", reason=f"this image's python has no {error.name}")
except Unable as error:
    say("unable", reason=str(error))
