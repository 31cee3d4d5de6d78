"""A web server with a database inside a sandbox: state in memory, in files and in sockets, for what keeps or copies sandboxes."""

from __future__ import annotations

from corral import Process, Sandbox

SERVE = r"""
import http.server, sqlite3, threading
data = sqlite3.connect("/var/tmp/data.db", check_same_thread=False)
data.execute("pragma journal_mode=wal"); data.execute("create table hits (n integer)"); data.commit()
lock = threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            data.execute("insert into hits values (1)"); data.commit()
            text = str(data.execute("select count(*) from hits").fetchone()[0]).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(text))); self.end_headers(); self.wfile.write(text)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
READY = "import socket, time\nwhile socket.socket().connect_ex(('127.0.0.1', 8000)): time.sleep(0.05)"
ASK = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/', timeout=50).read().decode())"


class Site:
    """In a sandbox of the image `base`. `running`: it is there already."""

    def __init__(self, box: Sandbox, *, running: bool = False) -> None:
        self._box = box
        if not running:
            box.files.write("/var/tmp/serve.py", SERVE)
            box.exec("python3", "/var/tmp/serve.py")
            box.run(["python3", "-c", READY], timeout=60).check()

    def ask(self) -> int:
        """How often it was asked, this time included."""
        return int(self._box.run(["python3", "-c", ASK]).check().stdout)


def read_until(process: Process[str], text: str) -> str:
    """What a terminal shows until it has shown this."""
    seen = ""
    for piece in process.stdout:
        seen += piece
        if text in seen:
            break
    return seen
