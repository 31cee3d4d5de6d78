"""One database: many readers in worker threads, one writer in its own. Writes are done in the order in which they were given, as many as wait in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection, Engine, Executable, create_engine, event, make_url

T = TypeVar("T")

READERS = 4
BATCH = 256
BUSY_SECONDS = 10.0

log = structlog.get_logger(__name__)


class _Write(NamedTuple):
    do: Callable[[Connection], Any]
    done: asyncio.Future[Any]


class Database:
    """`url` is SQLAlchemy's: `sqlite:////path` or `postgresql+psycopg://…`."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._reading = self._engine("BEGIN")
        # IMMEDIATE: a transaction that will write takes the lock at its start, where waiting for it works.
        self._writing = self._engine("BEGIN IMMEDIATE")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._newest: asyncio.Future[Any] | None = None
        self.failure: str | None = None
        """Why the last write failed; None after one that did not."""

    def open(self) -> None:
        """Bring the tables up to date and start the writer. Blocks; called on the event loop whose futures `write` gives."""
        from corral.store.migrate import migrate

        if path := self._file():
            # It holds environment variables of sandboxes: for its owner only. SQLite's other files get the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        migrate(self._writing)
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._write, name="store-write", daemon=True)
        self._writer.start()

    async def close(self) -> None:
        """Finish every write that was given."""
        if self._writer is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._writer.join)
            await asyncio.sleep(0)  # their futures' callbacks
            self._writer = None
        self._readers.shutdown()
        self._reading.dispose()
        self._writing.dispose()

    async def read(self, do: Callable[[Connection], T]) -> T:
        """Run a query in a worker thread. It sees every write given before."""
        await self.flush()

        def run() -> T:
            with self._reading.begin() as connection:
                return do(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def write(self, do: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Queue a change. It will be done even if nobody awaits the answer; `do` may be called again when another change of the same transaction failed."""
        loop = self._loop
        assert loop is not None, "the database is not open"
        done: asyncio.Future[T] = loop.create_future()
        self._newest = done
        self._queue.put(_Write(do, done))
        return done

    def run(self, statement: Executable, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None) -> asyncio.Future[int]:
        """Queue one statement; the answer is the number of rows it changed."""
        return self.write(lambda connection: connection.execute(statement, values).rowcount)

    async def flush(self) -> None:
        """Wait until all writes given so far are done, well or not."""
        if self._newest is not None and not self._newest.done():
            await asyncio.wait([self._newest])

    async def settle(self) -> None:
        """What was written until now is there after a power cut too; else that may take its last moments. In a worker thread: it waits for the disk."""
        path = self._file()
        if path is None:
            return  # PostgreSQL answers when that is so, and what is in memory never is

        def sync() -> None:
            # SQLite writes whole transactions behind each other, each with its sum: those that are in the file count.
            with contextlib.suppress(FileNotFoundError), Path(f"{path}-wal").open("rb") as log_of_writes:
                os.fsync(log_of_writes.fileno())

        await asyncio.get_running_loop().run_in_executor(self._readers, sync)

    async def checkpoint(self) -> None:
        """Move what was written into SQLite's main file, in a worker thread and beside the writer: this waits for the disk too."""
        if self._url.get_backend_name() != "sqlite":
            return

        def move() -> None:
            with self._reading.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

        await asyncio.get_running_loop().run_in_executor(self._readers, move)

    def _write(self) -> None:
        with self._writing.connect() as connection:
            while batch := self._next_batch():
                results = self._commit(connection, batch)
                failed = [result for result in results if isinstance(result, Exception)]
                self.failure = str(failed[-1]) if failed else None
                assert self._loop is not None
                self._loop.call_soon_threadsafe(_resolve, list(zip(batch, results, strict=True)))

    def _next_batch(self) -> list[_Write]:
        """Wait for a write, and take along what else is there. Empty: there will be none any more."""
        write = self._queue.get()
        batch: list[_Write] = []
        with contextlib.suppress(queue.Empty):
            while write is not None:
                batch.append(write)
                if len(batch) == BATCH:
                    break
                write = self._queue.get_nowait()
            else:
                if batch:
                    self._queue.put(None)  # the end is for the next turn
        return batch

    def _commit(self, connection: Connection, batch: list[_Write]) -> list[Any | Exception]:
        try:
            with connection.begin():
                return [write.do(connection) for write in batch]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            # One of them is to blame: each by itself, so that the others are done.
            return [result for write in batch for result in self._commit(connection, [write])]

    def _file(self) -> Path | None:
        if self._url.get_backend_name() != "sqlite" or self._url.database in (None, "", ":memory:"):
            return None
        return Path(str(self._url.database))

    def _engine(self, begin: str) -> Engine:
        if self._url.get_backend_name() != "sqlite":
            return create_engine(self._url, hide_parameters=True)
        # Errors of statements are logged: what is written has no business there.
        engine = create_engine(self._url, hide_parameters=True, connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS})

        def connected(connection: Any, _: object) -> None:
            connection.isolation_level = None  # the driver must not begin transactions of its own
            # No checkpoints while writing: they wait for the disk (see `checkpoint`).
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", "wal_autocheckpoint = 0"):
                connection.execute(f"PRAGMA {pragma}")

        def begins(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        event.listen(engine, "connect", connected)
        event.listen(engine, "begin", begins)
        return engine


def _resolve(writes: list[tuple[_Write, Any]]) -> None:
    for write, result in writes:
        if isinstance(result, Exception):
            log.error("store_write_failed", error=str(result))
            if not write.done.done():
                write.done.set_exception(result)
                write.done.exception()  # told above, whether or not somebody awaits it
        elif not write.done.done():
            write.done.set_result(result)
