"""Policies: what the kernel is told, and what is decided of names, connections and requests."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import InvalidArgument
from corral.net import policy, ranges
from corral.net.content import HttpRequest, like, normal_path
from corral.net.learn import propose
from corral.net.policy import Action, By, Compiled, Mode, Nat
from corral.net.ranges import Box, Protocol, disjoint
from corral.schema.egress import EgressPolicy, Flow

TCP, UDP = Protocol.TCP, Protocol.UDP


def number(text: str) -> int:
    return int(ipaddress.IPv4Address(text))


def made(*rules: dict[str, Any], default: str = "none", **more: Any) -> Compiled:
    return policy.compile(EgressPolicy.model_validate({"default": default, "rules": list(rules), **more}))


def request(method: str, target: str, name: str | None, *headers: tuple[str, str], port: int = 443) -> HttpRequest:
    return HttpRequest(method, target, name, number("93.184.216.34"), port, headers)


def kernel_lets(compiled: Compiled, protocol: Protocol, address: str, port: int) -> bool:
    """What nft does with a connection that no pin is about."""
    at = number(address)
    if any(box.holds(protocol, at, port) for box in compiled.kernel.deny):
        return False
    if any(box.holds(protocol, at, port) for box in compiled.kernel.allow):
        return not ranges.within(at, policy.NEVER)
    return compiled.kernel.mode is Mode.OPEN and ranges.within(at, policy.PUBLIC)


def test_none_is_closed() -> None:
    compiled = made()
    assert compiled.kernel.closed
    assert compiled.name("example.com").action is Action.DENY
    assert compiled.connection(TCP, 443, number("1.2.3.4"), "example.com").action is Action.DENY


def test_public_needs_no_proxy_and_opens_no_private_range() -> None:
    compiled = made(default="public")
    assert (compiled.kernel.nat, compiled.kernel.mode, compiled.kernel.allow) == (Nat.DNS, Mode.OPEN, ())
    assert kernel_lets(compiled, TCP, "1.2.3.4", 22)
    assert not kernel_lets(compiled, UDP, "1.2.3.4", 443), "QUIC hides its name"
    assert compiled.reachable(number("10.0.0.5")) is not None
    assert compiled.reachable(number("169.254.169.254")) is not None
    assert kernel_lets(made(default="public", quic=True), UDP, "1.2.3.4", 443)


def test_all_opens_private_ranges_but_never_the_machine_nor_its_metadata() -> None:
    compiled = made(default="all")
    assert kernel_lets(compiled, TCP, "10.1.2.3", 5432)
    assert compiled.reachable(number("10.1.2.3"), TCP, 5432) is None
    for address in ("127.0.0.1", "169.254.169.254", "192.0.0.8", "198.18.1.7", "224.0.0.1"):
        assert not kernel_lets(compiled, TCP, address, 80), address
        assert compiled.reachable(number(address)), address


def test_a_name_is_told_by_itself_and_wildcards_are_below() -> None:
    compiled = made({"to": ["api.example.com", "*.example.org"]})
    assert (compiled.kernel.nat, compiled.kernel.mode) == (Nat.PROXY, Mode.NAMES)
    assert [
        compiled.name(name).action for name in ("api.example.com", "a.b.example.org", "example.org", "example.com", "xapi.example.com", "a.api.example.com")
    ] == [
        Action.ALLOW,
        Action.ALLOW,
        Action.DENY,
        Action.DENY,
        Action.DENY,
        Action.DENY,
    ]
    # The address that was dialled does not matter: the name's own is used.
    ruling = compiled.connection(TCP, 443, number("6.6.6.6"), "api.example.com")
    assert (ruling.action, ruling.by, ruling.content) == (Action.ALLOW, By.NAME, False)
    assert compiled.connection(TCP, 443, number("6.6.6.6"), None).action is Action.DENY


def test_a_denial_wins_wherever_it_stands() -> None:
    compiled = made({"to": ["*.example.com"]}, {"to": ["bad.example.com"], "action": "deny", "name": "no bad"})
    ruling = compiled.connection(TCP, 443, None, "bad.example.com")
    assert (ruling.action, ruling.title) == (Action.DENY, "no bad")
    assert "no bad" in str(ruling.reason)
    assert compiled.name("bad.example.com").action is Action.DENY
    assert compiled.name("good.example.com").action is Action.ALLOW


def test_a_denied_range_holds_for_what_names_point_to() -> None:
    compiled = made({"to": ["*"]}, {"to": ["6.6.0.0/16"], "action": "deny"})
    assert compiled.reachable(number("6.6.6.6"), TCP, 443)
    assert compiled.reachable(number("6.6.6.6"))
    assert compiled.reachable(number("6.7.6.6"), TCP, 443) is None
    assert not kernel_lets(compiled, TCP, "6.6.1.1", 22)
    assert kernel_lets(compiled, TCP, "6.7.1.1", 22)
    assert not kernel_lets(compiled, TCP, "10.0.0.1", 22), "`*` opens no private range"


def test_a_private_range_opened_on_purpose() -> None:
    compiled = made({"to": ["10.1.0.0/16"], "ports": [5432], "protocol": "tcp"}, {"to": ["db.corp.example"]})
    assert kernel_lets(compiled, TCP, "10.1.2.3", 5432)
    assert not kernel_lets(compiled, TCP, "10.1.2.3", 5433)
    assert compiled.reachable(number("10.1.2.3"), TCP, 5432) is None
    assert compiled.reachable(number("10.1.2.3"), TCP, 80)
    assert compiled.reachable(number("10.2.2.3"))
    # By address on a proxied port: the address that was dialled, whatever name is told.
    web = made({"to": ["10.1.0.0/16"]}, {"to": ["api.example.com"]})
    assert web.connection(TCP, 80, number("10.1.0.9"), "intranet").by is By.ADDRESS


def test_pins_are_what_the_proxy_does_not_see() -> None:
    compiled = made(
        {"to": ["db.example.com"], "ports": [5432], "protocol": "tcp"},
        {"to": ["any.example.com"]},
        {"to": ["any.example.com"], "ports": ["20-30"], "action": "deny"},
    )
    assert made({"to": ["db.example.com"], "ports": [5432], "protocol": "tcp"}).pins("db.example.com") == ((TCP, 5432, 5432),)
    assert compiled.kernel.nat is Nat.TCP, "that a port of a name is denied is held by the proxy"
    pins = compiled.pins("any.example.com")
    assert (UDP, 0, 19) in pins
    assert (UDP, 31, 65535) in pins
    assert all(protocol is not TCP for protocol, _, _ in pins)
    assert compiled.pins("other.example.com") == ()
    assert made({"to": ["web.example.com"], "ports": [80, 443]}).pins("web.example.com") == ((UDP, 80, 80), (UDP, 443, 443))


def test_asking_holds_tcp_on_every_port() -> None:
    compiled = made({"to": ["*"], "action": "ask"})
    assert compiled.kernel.nat is Nat.TCP
    assert not kernel_lets(compiled, UDP, "1.2.3.4", 53)
    assert compiled.connection(TCP, 22, number("1.2.3.4"), None).action is Action.ASK
    assert made({"to": ["*"], "action": "ask", "ports": [443]}).kernel.nat is Nat.PROXY


def test_the_first_that_matches_holds() -> None:
    compiled = made({"to": ["a.example.com"]}, {"to": ["*.example.com"], "action": "ask"})
    assert compiled.connection(TCP, 443, None, "a.example.com").action is Action.ALLOW
    assert compiled.connection(TCP, 443, None, "b.example.com").action is Action.ASK


def test_requests_are_matched_by_method_path_header_and_query() -> None:
    compiled = made(
        {"to": ["api.example.com"], "http": {"methods": ["GET"], "path": "/v1/*", "headers": {"X-Team": "a*"}, "query": {"page": "?"}}},
        {"to": ["api.example.com"], "http": {"path": "/v1/admin*"}, "action": "deny"},
    )
    connection = compiled.connection(TCP, 443, None, "api.example.com")
    assert (connection.action, connection.content) == (Action.ALLOW, True)
    good = ("x-team", "ab")
    assert compiled.request(request("GET", "/v1/items?page=2", "api.example.com", good)).action is Action.ALLOW
    for method, target, *headers in (
        ("POST", "/v1/items?page=2", good),
        ("GET", "/v2/items?page=2", good),
        ("GET", "/v1/../v2/items?page=2", good),
        ("GET", "/v1/%2e%2e/v2/items?page=2", good),
        ("GET", "/v1/items?page=22", good),
        ("GET", "/v1/items?page=2&page=22", good),
        ("GET", "/v1/items", good),
        ("GET", "/v1/items?page=2", ("x-team", "b")),
        ("GET", "/v1/items?page=2"),
        ("GET", "/v1/admin?page=2", good),
        ("GET", "/v1/x/../%61dmin/?page=2", good),
        ("GET", "//v1//admin?page=2", good),
        # Servers that route a path as it comes take these for something else than those that resolve it first.
        ("GET", "/v2/..%2fv1/items?page=2", good),
        ("GET", "/v2/../v1/items?page=2", good),
        ("GET", "/v1/admin/%2e%2e/items?page=2", good),
        ("GET", "/v1/admin/../items?page=2", good),
    ):
        ruling = compiled.request(request(method, target, "api.example.com", *headers))
        assert ruling.action is Action.DENY, (method, target, headers)
        assert ruling.reason


def test_content_is_read_only_where_a_rule_needs_it() -> None:
    compiled = made(
        {"to": ["plain.example.com"]}, {"to": ["api.example.com"], "inject": {"Authorization": "Bearer {{T}}"}}, {"to": ["plain.example.com"], "inspect": True}
    )
    assert compiled.connection(TCP, 443, None, "api.example.com").content
    assert not compiled.connection(TCP, 443, None, "plain.example.com").content
    assert compiled.connection(TCP, 22, None, "api.example.com").action is Action.DENY
    assert compiled.pins("api.example.com") == ()
    denied = made({"to": ["plain.example.com"]}, {"to": ["plain.example.com"], "action": "deny", "http": {"path": "/private*"}})
    assert denied.connection(TCP, 443, None, "plain.example.com").content


def test_too_many_ranges_are_refused() -> None:
    rules = [{"to": [f"{n}.{m}.0.0/17" for m in range(250)], "ports": [str(p) for p in range(1, 64, 2)]} for n in range(1, 2)]
    with pytest.raises(InvalidArgument, match="ranges"):
        made(*rules)


def flow(**given: Any) -> Flow:
    return Flow.model_validate({"seq": 1, "at": datetime.now(UTC), "sandbox": "sb-a", "kind": "tcp", "verdict": "allowed", **given})


def test_what_was_learnt_is_small() -> None:
    learning = EgressPolicy.model_validate({"default": "public", "learn": True})
    proposal = propose(
        learning,
        [
            flow(kind="tls", name="pkgs.example.com", port=443),
            flow(kind="tls", name="files.example.net", port=443),
            flow(kind="http", name="pkgs.example.com", port=443),
            flow(kind="dns", name="only-looked-up.example", port=53),
            flow(address="1.2.3.4", port=22),
            flow(kind="tls", name="denied.example", port=443, verdict="denied"),
        ],
    )
    assert proposal.default == "none"
    assert not proposal.learn
    assert [(rule.to, rule.ports, rule.protocol) for rule in proposal.rules] == [
        (["1.2.3.4/32"], ["22"], "tcp"),
        (["files.example.net", "pkgs.example.com"], ["443"], "tcp"),
    ]


def test_what_is_learnt_opens_no_more_than_was_used() -> None:
    reading = {"to": ["api.example.com"], "http": {"methods": ["GET"], "path": "/repos/*"}, "inject": {"Authorization": "{{TOKEN}}"}}
    unused = {"to": ["other.example.com"], "inject": {"X": "{{TOKEN}}"}}
    everything = {"to": ["*"], "inspect": True}
    denied = {"to": ["evil.example.net"], "action": "deny"}
    learning = EgressPolicy.model_validate({"default": "all", "learn": True, "rules": [reading, unused, everything, denied]})
    proposal = propose(
        learning,
        [
            flow(kind="http", name="api.example.com", port=443, method="GET", path="/repos/x", rule="api.example.com", address="203.0.113.1"),
            flow(kind="http", name="pkgs.example.com", port=443, method="GET", path="/", rule="*", address="203.0.113.1"),
            flow(kind="tcp", name="db.example.com", port=5432, address="10.0.0.5"),
            # What would be denied although it learns is not allowed by having failed.
            flow(port=443, address="169.254.169.254", verdict="failed"),
            flow(port=443, name="evil.example.net", verdict="failed"),
            # Where it led is what the program chose, not what the name points to.
            flow(kind="tls", port=8443, name="nowhere.example.com", address="10.9.9.9", verdict="failed"),
        ],
    )
    assert [(rule.to, rule.ports, rule.action) for rule in proposal.rules] == [
        (["evil.example.net"], None, "deny"),
        (["api.example.com"], None, "allow"),
        (["pkgs.example.com"], None, "allow"),
        (["10.0.0.5/32", "db.example.com"], ["5432"], "allow"),
        (["nowhere.example.com"], ["8443"], "allow"),
    ]
    compiled = policy.compile(proposal)
    assert compiled.request(request("GET", "/repos/x", "api.example.com")).action is Action.ALLOW
    assert compiled.request(request("POST", "/repos/x", "api.example.com")).action is Action.DENY
    assert compiled.request(request("GET", "/", "unseen.example.com")).action is Action.DENY
    assert compiled.reachable(number("10.0.0.5"), TCP, 5432) is None


def test_names_that_are_two_names_are_not_guessed() -> None:
    """Older programs take faß.example for fass.example, which is somebody else's."""
    for name in ("faß.example", "*.βόλος.example", "a\u200db.example"):
        with pytest.raises(ValueError, match="as it is encoded"):
            EgressPolicy.model_validate({"rules": [{"to": [name]}]})
    (rule,) = EgressPolicy.model_validate({"rules": [{"to": ["BÜCHER.example.", "xn--fa-hia.example"]}]}).rules
    assert rule.to == ["xn--bcher-kva.example", "xn--fa-hia.example"]


def test_an_alias_of_a_denied_name_is_denied_too() -> None:
    compiled = made({"to": ["*.example.net"], "action": "deny"}, default="public")
    denied = compiled.alias(["cdn.example.org", "evil.example.net"])
    assert denied is not None
    assert denied.reason == "the rule '*.example.net' of the egress policy denies evil.example.net"
    assert compiled.alias(["cdn.example.org"]) is None
    assert made({"to": ["cdn.example.org"]}).alias(["evil.example.net"]) is None, "a list of what is allowed is about the asked name"


def test_what_names_no_server_is_opened_by_its_address_only() -> None:
    rules = ({"to": ["evil.example.net"], "action": "deny"}, {"to": ["*"]})
    compiled = made(*rules)
    assert compiled.opened(443, number("203.0.113.1")) is None
    assert compiled.request(request("GET", "/", None)).action is Action.DENY
    opening = made(*rules, {"to": ["93.184.216.0/24"]})
    assert opening.opened(443, number("93.184.216.34")) is not None
    assert opening.request(request("GET", "/", None)).action is Action.ALLOW
    assert made({"to": ["*"]}).request(request("GET", "/", None)).action is Action.ALLOW, "nothing is told apart"


addresses = st.integers(0, 63).map(lambda n: number("1.2.3.0") + n)
ports = st.integers(0, 15)
boxes = st.builds(
    lambda protocol, a, b, low, high: Box(protocol, min(a, b), max(a, b), min(low, high), max(low, high)),
    st.sampled_from(Protocol),
    addresses,
    addresses,
    ports,
    ports,
)


@given(st.lists(boxes, max_size=12))
def test_disjoint_boxes_are_the_same_region(given_boxes: list[Box]) -> None:
    result = disjoint(given_boxes)
    for protocol in Protocol:
        for address in range(number("1.2.3.0"), number("1.2.3.64")):
            for port in range(16):
                inside = any(box.holds(protocol, address, port) for box in given_boxes)
                assert sum(box.holds(protocol, address, port) for box in result) == inside


names = st.sampled_from(["a.example", "b.example", "x.a.example", "other.test"])
destinations = st.sampled_from(["a.example", "*.example", "*.a.example", "*", "1.2.3.0/24", "1.2.3.4/32", "10.0.0.0/8", "0.0.0.0/0"])
rule_texts = st.fixed_dictionaries(
    {"to": st.lists(destinations, min_size=1, max_size=3), "action": st.sampled_from(["allow", "deny"])},
    optional={"ports": st.lists(st.sampled_from(["22", "80", "443", "20-90"]), min_size=1, max_size=2), "protocol": st.sampled_from(["tcp", "udp"])},
)
policies = st.fixed_dictionaries({"default": st.sampled_from(["none", "public", "all"]), "rules": st.lists(rule_texts, max_size=5)}).map(
    EgressPolicy.model_validate
)
dialled = st.sampled_from(["1.2.3.4", "1.2.3.5", "9.9.9.9", "10.0.0.1", "127.0.0.1", "169.254.169.254", "198.18.1.1"])


@given(policies, dialled, st.sampled_from([21, 22, 80, 443, 8080]), st.sampled_from([TCP, UDP]))
def test_kernel_and_proxy_agree_on_addresses(given_policy: EgressPolicy, address: str, port: int, protocol: Protocol) -> None:
    compiled = policy.compile(given_policy)
    if given_policy.closed or (protocol is UDP and port == 443):
        return
    assert kernel_lets(compiled, protocol, address, port) == (compiled.connection(protocol, port, number(address), None).action is Action.ALLOW)


@given(policies, names, dialled, st.sampled_from([22, 80, 443]))
def test_no_denied_name_passes(given_policy: EgressPolicy, name: str, address: str, port: int) -> None:
    compiled = policy.compile(given_policy)
    ruling = compiled.connection(TCP, port, number(address), name)
    if compiled.name(name).action is Action.DENY and ruling.action is Action.ALLOW:
        assert ruling.by is By.ADDRESS, "only an address that a rule opens may be dialled under a denied name"
    if ruling.action is Action.ALLOW and ruling.by is By.ADDRESS:
        assert compiled.connection(TCP, port, number(address), None).action is Action.ALLOW


@given(policies)
def test_nothing_opens_the_machine_itself(given_policy: EgressPolicy) -> None:
    compiled = policy.compile(given_policy)
    for address in ("127.0.0.1", "198.18.1.9", "192.0.0.8", "224.0.0.5"):
        assert compiled.connection(TCP, 80, number(address), None).action is Action.DENY
        assert compiled.reachable(number(address), TCP, 80)


@given(st.text("ab*?", max_size=8), st.text("ab*?", max_size=8))
def test_patterns(pattern: str, text: str) -> None:
    import re

    expression = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    assert like(pattern, text) == bool(re.fullmatch(expression, text, re.DOTALL))


@given(st.text())
def test_paths_have_no_dots(text: str) -> None:
    path = normal_path("/" + text)
    assert path.startswith("/")
    assert not {".", ".."} & set(path.split("/"))


def test_resolvers_of_others_are_no_way_around_names() -> None:
    plain = made(default="public")
    assert kernel_lets(plain, TCP, "1.1.1.1", 443), "nothing is told apart by name"
    guarded = made({"to": ["evil.example"], "action": "deny"}, default="public")
    assert not kernel_lets(guarded, TCP, "1.1.1.1", 853)
    assert kernel_lets(guarded, TCP, "1.1.1.1", 80)
    assert guarded.connection(TCP, 443, number("1.1.1.1"), None).action is Action.DENY
    assert guarded.connection(TCP, 443, number("1.1.1.1"), "dns.google").action is Action.DENY
    assert guarded.name("dns.google").action is Action.DENY
    opened = made({"to": ["evil.example"], "action": "deny"}, {"to": ["dns.google", "8.8.8.8"]}, default="public")
    assert opened.name("dns.google").action is Action.ALLOW
    assert opened.connection(TCP, 443, number("8.8.8.8"), None).action is Action.ALLOW
    assert kernel_lets(opened, TCP, "8.8.8.8", 853)
    assert not kernel_lets(opened, TCP, "9.9.9.9", 853)


def test_metadata_is_opened_by_its_range_only() -> None:
    for address in ("169.254.169.254", "168.63.129.16", "100.100.100.200"):
        for default in ("public", "all"):
            compiled = policy.compile(EgressPolicy.model_validate({"default": default}))
            assert compiled.connection(TCP, 80, number(address), None).action is Action.DENY
            assert compiled.reachable(number(address), TCP, 80)
        opened = policy.compile(EgressPolicy.model_validate({"rules": [{"to": [address]}]}))
        assert opened.connection(TCP, 80, number(address), None).action is Action.ALLOW


def test_a_name_that_points_into_a_range_of_questions_is_no_way_around_them() -> None:
    compiled = policy.compile(EgressPolicy.model_validate({"default": "public", "rules": [{"to": ["10.0.0.0/8"], "action": "ask"}]}))
    assert compiled.connection(TCP, 80, number("10.0.0.5"), None).action is Action.ASK
    assert compiled.reachable(number("10.0.0.5"), TCP, 80)
    assert compiled.reachable(number("10.0.0.5")) is None
