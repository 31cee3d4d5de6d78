"""One suite for both clients: the blocking one dressed up so that its calls can be awaited, each in a worker thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Generator
from typing import Any

import corral
from corral import aio

_RENAMED = {"aclose": "close"}
_PURE = frozenset({"named"})
"""What does no I/O, and is called without await in both."""


class Awaited:
    """A blocking object whose methods can be awaited, which can be iterated over and entered asynchronously."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, _RENAMED.get(name, name))
        if name in _PURE:
            return value
        return _method(value) if callable(value) and not isinstance(value, type) else dressed(value)

    async def __aenter__(self) -> Any:
        return dressed(await asyncio.to_thread(self._inner.__enter__))

    async def __aexit__(self, *what: object) -> Any:
        return await asyncio.to_thread(self._inner.__exit__, *what)

    def __aiter__(self) -> Any:
        return _Steps(iter(self._inner))


class _Steps:
    def __init__(self, iterator: Generator[Any]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        value = await asyncio.to_thread(next, self._iterator, _END)
        if value is _END:
            raise StopAsyncIteration
        return dressed(value)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._iterator.close)


_END = object()


def _method(function: Any) -> Any:
    return lambda *args, **kwargs: _Call(functools.partial(function, *args, **kwargs))


class _Call:
    """A call that is made when it is awaited, or when its iterator is asked for."""

    def __init__(self, call: functools.partial[Any]) -> None:
        self._call = call

    def __await__(self) -> Any:
        return self._run().__await__()

    async def _run(self) -> Any:
        return dressed(await asyncio.to_thread(self._call))

    def __aiter__(self) -> Any:
        return _Steps(iter(self._call()))


def dressed(value: Any) -> Any:
    """Objects of the blocking client, dressed; everything else as it is."""
    return Awaited(value) if type(value).__module__.startswith("corral.sdk._sync") else value


class _Blocking:
    """`corral`, as if it were `corral.aio`."""

    @staticmethod
    def Client(*args: Any, **kwargs: Any) -> Any:  # noqa: N802
        return Awaited(corral.Client(*args, **kwargs))

    Sandbox = Awaited(corral.Sandbox)
    Secret = Awaited(corral.Secret)


FLAVORS: dict[str, Any] = {"async": aio, "sync": _Blocking}
