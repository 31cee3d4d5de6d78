"""Policies as Python says them: `Egress.allow("api.example.com")`, `Egress.public().deny("ads.example.com")`. Values; each method gives another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, Literal, ParamSpec, overload

from corral.schema.egress import Budget, EgressPolicy, Preset, Rule
from corral.sdk import faults

P = ParamSpec("P")
Ports = int | str | Sequence[int | str]


class _Chained(Generic[P]):
    """A method that can be called on the class too: then it begins with nothing reachable."""

    def __init__(self, function: Callable[Concatenate[Egress, P], Egress]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type[Egress]) -> Callable[P, Egress]: ...
    @overload
    def __get__(self, instance: Egress, owner: type[Egress]) -> Callable[P, Egress]: ...
    def __get__(self, instance: Egress | None, owner: type[Egress]) -> Callable[P, Egress]:
        function, begin = self._function, Egress() if instance is None else instance

        def call(*args: P.args, **kwargs: P.kwargs) -> Egress:
            return function(begin, *args, **kwargs)

        call.__doc__ = function.__doc__
        return call


@dataclass(frozen=True)
class Egress:
    """What a sandbox may reach. A rule that denies wins over every other, else the first that matches holds, else the default (`none`, `public`, `all`)."""

    policy: EgressPolicy = field(default_factory=EgressPolicy)
    """As the server takes it."""

    @staticmethod
    def none() -> Egress:
        """Nothing is reachable but what rules allow."""
        return Egress()

    @staticmethod
    def public() -> Egress:
        """The internet, but neither private, link-local, metadata nor multicast ranges, nor the host."""
        return Egress(EgressPolicy(default=Preset.PUBLIC))

    @staticmethod
    def all() -> Egress:
        """Private ranges too; never the host itself nor other sandboxes."""
        return Egress(EgressPolicy(default=Preset.ALL))

    @_Chained
    def allow(self, *to: str, ports: Ports | None = None, protocol: Literal["tcp", "udp", "icmp"] | None = None, name: str | None = None) -> Egress:
        """Let connections to these pass: domains, `*.` and a domain for every name below it, IPv4 addresses and ranges, or `*`."""
        return self._with(to, ports=ports, protocol=protocol, name=name)

    @_Chained
    def deny(self, *to: str, ports: Ports | None = None, protocol: Literal["tcp", "udp", "icmp"] | None = None, name: str | None = None) -> Egress:
        """Refuse connections to these, whatever else is allowed."""
        return self._with(to, ports=ports, protocol=protocol, name=name, action="deny")

    @_Chained
    def ask(
        self,
        *to: str,
        ports: Ports | None = None,
        protocol: Literal["tcp", "udp", "icmp"] | None = None,
        name: str | None = None,
        timeout: float | None = None,
        default: Literal["allow", "deny"] | None = None,
    ) -> Egress:
        """Hold connections to these until somebody decides. After `timeout` seconds (of the whole policy; 60) `default` (deny) is taken."""
        asking = self._with(to, ports=ports, protocol=protocol, name=name, action="ask")
        return asking._changed(**_given(ask_timeout=timeout, ask_default=default))

    @_Chained
    def rule(
        self,
        *to: str,
        ports: Ports | None = None,
        protocol: Literal["tcp", "udp", "icmp"] | None = None,
        name: str | None = None,
        action: Literal["allow", "deny", "ask"] = "allow",
        methods: Sequence[str] | None = None,
        path: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        inspect: bool = False,
        inject: Mapping[str, str] | None = None,
        proxy: str | None = None,
        respond: Mapping[str, Any] | None = None,
    ) -> Egress:
        """Any rule; with one of `methods`, `path`, `headers`, `query` about single HTTP requests, whose TLS is then ended outside of the sandbox.

        `inject` sets headers, in which `{{NAME}}` is the value of that secret; `proxy` sends requests to a server of yours; `respond` answers in the
        server's place (`status`, `headers`, `body`); `inspect` only checks that Host is the name in TLS.
        """
        match = _given(methods=methods and [*methods], path=path, headers=headers and dict(headers), query=query and dict(query))
        what = _given(http=match or None, inspect=inspect or None, inject=inject and dict(inject), proxy=proxy, respond=respond and dict(respond))
        return self._with(to, ports=ports, protocol=protocol, name=name, action=action, **what)

    @_Chained
    def learn(self) -> Egress:
        """Let everything pass that the default allows (`public` unless it is said to be another), and propose the smallest list of rules: `sb.egress.proposal()`."""
        return self._changed(learn=True, default=Preset.PUBLIC if self.policy.default is Preset.NONE else self.policy.default)

    @_Chained
    def budget(self, *, upload: float | None = None, download: float | None = None, connections: int | None = None, bytes: int | None = None) -> Egress:
        """Limit it: `upload` and `download` in Mbit/s, `connections` open at once, `bytes` both ways together, beyond which everything is denied."""
        return self._changed(budget=faults.build(Budget, **_given(upload=upload, download=download, connections=connections, bytes=bytes)))

    @_Chained
    def quic(self) -> Egress:
        """Let UDP 443 pass, in which no name is checked."""
        return self._changed(quic=True)

    def _with(self, to: Sequence[str], *, ports: Ports | None, **fields: Any) -> Egress:
        listed = None if ports is None else [str(ports)] if isinstance(ports, int | str) else [str(port) for port in ports]
        rule = faults.build(Rule, to=[*to], **_given(ports=listed, **fields))
        return self._changed(rules=[*self.policy.rules, rule])

    def _changed(self, **fields: Any) -> Egress:
        kept = {name: getattr(self.policy, name) for name in self.policy.model_fields_set}
        return Egress(faults.build(EgressPolicy, **{**kept, **fields}))


def policy(egress: Egress | EgressPolicy | Mapping[str, Any] | str) -> EgressPolicy:
    """As the server takes it: also for the name of a preset, or the JSON of a policy."""
    match egress:
        case Egress():
            return egress.policy
        case EgressPolicy():
            return egress
        case str():
            return faults.build(EgressPolicy, default=egress)
        case _:
            return faults.build(EgressPolicy, **egress)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
