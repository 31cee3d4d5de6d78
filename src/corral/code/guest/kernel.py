"""The Python kernel's program, which the driver runs: ipykernel, with variables for one execution, tables and charts as data."""

# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false

import codecs
import importlib.util
import json
import os
import random
import select
import sys
import threading

del sys.path[0]  # the directory of this file: the user's own is added by IPython

# Not served here, and slow to import: a debugger and completions.
for unwanted in ("debugpy", "jedi"):
    sys.modules[unwanted] = None  # pyright: ignore[reportArgumentType] - makes importing it fail

import jupyter_client.connect  # noqa: E402
from ipykernel.iostream import OutStream  # noqa: E402
from ipykernel.ipkernel import IPythonKernel  # noqa: E402
from ipykernel.kernelapp import IPKernelApp  # noqa: E402
from IPython.core.formatters import BaseFormatter, JSONFormatter, catch_format_error  # noqa: E402
from traitlets import ObjectName  # noqa: E402
from traitlets.config import Config  # noqa: E402

CELLS = 100_000
"""Cells of a table that are given as data."""
TREE = 1 << 20
"""Characters of a list or dictionary that is given as JSON."""


class Kernel(IPythonKernel):
    """Sets the variables of an execution around it."""

    async def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False, *, cell_meta=None, cell_id=None):
        be_oneself()
        env = (cell_meta or {}).get("env") or {}
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        STARTED.clear()
        try:
            return await super().do_execute(code, silent, store_history, user_expressions, allow_stdin, cell_meta=cell_meta, cell_id=cell_id)
        finally:
            for stream in STREAMS:  # whatever sys.stdout is by now
                stream.flush()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def be_oneself():
    """In a copy of this kernel, whose memory came from a fork or a snapshot, no other numbers are drawn at random than by chance."""
    global BOOT
    if (now := boot()) != BOOT:
        BOOT = now
        random.seed()
        if (drawn := sys.modules.get("numpy.random")) is not None:
            drawn.seed()


def boot():
    """What each copy has of its own."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read()
    except OSError:
        return ""


BOOT = boot()


class Output:
    """One of the kernel's two streams. When it is flushed everything is on its way that was written before: by this process, and by children that have ended.

    Children write into the pipe behind the descriptor. ipykernel reads that in a thread, whenever that has its turn: what a child said could come after the cell that it belongs to was told as done.
    So could what its flush of every fifth of a second had just taken out of the buffers: that these are empty does not say that all of it was sent.
    """

    def __init__(self, stream):
        self.stream = stream
        self.lock = threading.Lock()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.said = self.flushed = None
        stream._is_master_process = lambda: not FORKED  # ipykernel asks the system at each word
        if stream._fid is not None:
            os.set_blocking(stream._fid, False)

    def watch(self):
        ready = select.poll()
        ready.register(self.stream._fid, select.POLLIN)
        while self.stream._should_watch:
            ready.poll()
            if not self.take():
                return  # the user has closed the descriptor: nobody can write any more

    def take(self):
        """What is in the pipe now; False at its end. That it is taken and passed on under one lock is what makes a flush complete."""
        if self.stream._fid is None:
            return False
        with self.lock:
            try:
                data = os.read(self.stream._fid, PIPE)
            except BlockingIOError:
                return True
            if text := self.decoder.decode(data):
                self.put(text)
            return bool(data)

    def put(self, text):
        written = whole_write(self.stream, text)
        self.said = object()
        return written

    def write(self, text):
        if FORKED:
            # Its threads are not in this process, and the way that ipykernel has instead does not say when it has arrived.
            data = memoryview(text.encode(errors="replace"))
            while data:
                data = data[os.write(self.stream._original_stdstream_fd, data) :]
            return len(text)
        if STARTED:
            self.take()  # so that it stays in the order in which it was said
        return self.put(text)

    def flush(self):
        if FORKED:
            return
        self.take()
        # Where nothing was written there is nothing to flush: that would cost two changes of threads each time.
        if (said := self.said) is not self.flushed:
            whole_flush(self.stream)
            self.flushed = said


def output(stream):
    return stream.__dict__.get("_output") or stream.__dict__.setdefault("_output", Output(stream))


PIPE = 1 << 20
"""Bytes, as many as a pipe can hold."""
FORKED = []
"""Not empty in a process that was forked from the kernel."""
STARTED = []
"""Not empty when this execution has started a process."""
STARTS = frozenset({"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})
os.register_at_fork(after_in_child=lambda: FORKED.append(True))
sys.addaudithook(lambda event, _: STARTED.append(True) if event in STARTS and not STARTED else None)
whole_write, whole_flush = OutStream.write, OutStream.flush
OutStream._watch_pipe_fd = lambda stream: output(stream).watch()
OutStream.write = lambda stream, text: output(stream).write(text)
OutStream.flush = lambda stream: output(stream).flush()


class Extra(BaseFormatter):
    """One more form of what is shown, of values of one class, which is known by its name: importing it would take long.

    Not registered by type as others are: those of figures are taken away when matplotlib is set up.
    """

    print_method = ObjectName("_repr_nothing_")
    _return_type = dict

    def __init__(self, format_type, places, form, **kwargs):
        super().__init__(format_type=format_type, **kwargs)
        self.places = places
        self.form = form

    @catch_format_error
    def __call__(self, value):
        if any((cls.__module__, cls.__name__) in self.places for cls in type(value).__mro__):
            return self.form(value)
        return None


class Trees(JSONFormatter):
    """Lists and dictionaries too, not only values that say what they are in JSON."""

    def __call__(self, value):
        if type(value) in (list, dict):
            try:
                return tree(value)
            except (TypeError, ValueError, RecursionError):
                return None
        return super().__call__(value)


def table(frame):
    """As an object of its columns."""
    if frame.size > CELLS:
        return None
    return {str(name): [plain(value) for value in frame.iloc[:, at].tolist()] for at, name in enumerate(frame.columns)}


def plain(value):
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # JSON has neither infinity nor what is no number
    if value != value:  # NaT, NA and their like
        return None
    iso = getattr(value, "isoformat", None)
    return str(value) if iso is None else iso()


def tree(value):
    """Lists and dictionaries that JSON can say."""
    text = json.dumps(value, allow_nan=False)
    return json.loads(text) if len(text) < TREE else None


def chart(figure):
    """As E2B's `e2b-charts` finds it, where the image has that."""
    try:
        from e2b_charts import chart_figure_to_dict
    except ImportError:
        return None
    # Through JSON, since it holds enumerations and numbers of numpy.
    return json.loads(json.dumps(chart_figure_to_dict(figure), default=str), parse_constant=lambda _: None) or None


class Changed:
    """A module that is changed when it is imported, and not before: importing it takes time."""

    def __init__(self, name, change):
        self.name = name
        self.change = change
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            whole, spec.loader.exec_module = spec.loader.exec_module, lambda module: (whole(module), self.change(module))
        return spec


def show_pictures(module):
    """Pillow's: a picture that is shown or saved into a file is displayed, since there is no screen."""
    from IPython.display import display

    save = module.Image.save

    def saved(image, fp, format=None, **params):
        save(image, fp, format, **params)
        if isinstance(fp, (str, os.PathLike)):
            display(image)

    module.Image.save = saved
    module.Image.show = lambda image, *_args, **_named: display(image)


def read_to_the_end(module):
    """pexpect's, by which IPython runs `!command`: it looks at the terminal for a twentieth of a second, then whether the process lives, and takes a process that has ended since for one that has said all."""
    read, plain = module.spawn.read_nonblocking, module.SpawnBase.read_nonblocking

    def whole(child, size=1, timeout=-1):
        try:
            return read(child, size, timeout)
        except module.EOF:
            ready = select.poll()
            ready.register(child.child_fd, select.POLLIN)
            if not ready.poll(0):
                raise
            data = plain(child, size)  # or the end again
            child.flag_eof = False
            return data

    module.spawn.read_nonblocking = whole


Changed("PIL.Image", show_pictures)
Changed("pexpect.pty_spawn", read_to_the_end)
# What is executed is not written into a database of the user's.
app = IPKernelApp.instance(kernel_class=Kernel, config=Config(HistoryManager={"enabled": False}, InteractiveShell={"colors": "NoColor"}))
jupyter_client.connect.localhost = lambda: "127.0.0.1"  # it would look at all network interfaces for it
app.initialize()
for unwanted in ("debugpy", "jedi"):
    del sys.modules[unwanted]
STREAMS = sys.stdout, sys.stderr
display = app.shell.display_formatter
for extra in (
    Extra("application/vnd.corral.data+json", {("pandas", "DataFrame"), ("pandas.core.frame", "DataFrame")}, table, parent=display),
    Extra("application/vnd.corral.chart+json", {("matplotlib.figure", "Figure")}, chart, parent=display),
):
    display.formatters[extra.format_type] = extra
    display.active_types = [*display.active_types, extra.format_type]
display.formatters["application/json"] = Trees(parent=display)
app.start()
