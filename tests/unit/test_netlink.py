"""Netlink's attributes are read as they were packed, whatever comes is read without harm, and the table's keys are what nftables takes them for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from corral.net import elements
from corral.net import policy as policies
from corral.net.elements import Switchboard
from corral.net.netlink import attribute, attributes, messages, nest, text, u32
from corral.net.nfnetlink import Element, counted, counter, quota
from corral.net.ranges import Protocol
from corral.schema.egress import Budget, EgressPolicy


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_are_read_as_they_were_packed(parts: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attribute(kind, data) for kind, data in parts)
    assert list(attributes(packed)) == parts
    assert list(attributes(nest(1, packed)[4:])) == parts


@given(st.binary(max_size=200))
def test_any_bytes_are_read(junk: bytes) -> None:
    assert all(len(data) <= len(junk) for _, data in attributes(junk))
    assert all(len(body) <= len(junk) for _, _, body in messages(junk))


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_what_a_quota_has_used_is_read(limit: int, used: int) -> None:
    assert counted(quota(limit, used)) == used
    assert counted(counter()) == 0
    assert counted(b"") == 0


def test_names_end_and_numbers_are_the_machines() -> None:
    assert text(3, "sb1") == b"\x08\x00\x03\x00sb1\x00"
    assert u32(4, 1) == attribute(4, (1).to_bytes(4, "little"))


def elements_of(policy: object, *, big_endian: bool = True) -> dict[str, list[Element]]:
    compiled = policies.compile(EgressPolicy.model_validate(policy))
    changes = Switchboard(big_endian).policy("sb7", 2, compiled.kernel)
    assert all(change.add for change in changes)
    return {change.set: list(change.elements) for change in changes if change.elements}


def test_a_closed_policy_has_no_elements() -> None:
    assert elements_of({}) == {}
    assert elements_of({"rules": [{"to": ["*"], "action": "deny"}]}) == {}


def test_a_policy_opens_one_interface_for_one_generation() -> None:
    opened = elements_of({"default": "public"})
    assert [element.chain for element in opened["mode"]] == ["m_open"]
    assert [element.data for element in opened["gen"]] == [(2).to_bytes(4, "little")]
    assert opened["live"][0].key == b"sb7".ljust(16, b"\0") + (2).to_bytes(4, "little")
    assert elements.interface_of(opened["live"][0].key) == "sb7"


def test_dns_is_caught_whatever_the_server_and_the_web_only_where_names_matter() -> None:
    def caught(policy: object) -> set[tuple[int, int, int, str | None]]:
        ends = [(element, element.end or b"") for element in elements_of(policy)["captured"]]
        return {(one.key[4], int.from_bytes(one.key[8:10], "big"), int.from_bytes(end[8:10], "big"), one.chain) for one, end in ends}

    dns = {(6, 53, 53, "to_dns"), (17, 53, 53, "to_dns")}
    assert caught({"default": "public"}) == dns
    assert caught({"rules": [{"to": ["example.com"]}]}) == dns | {(6, 80, 80, "to_proxy"), (6, 443, 443, "to_proxy")}
    assert caught({"rules": [{"to": ["example.com"], "action": "ask"}]}) == dns | {(6, 0, 52, "to_proxy"), (6, 54, 65535, "to_proxy")}


def test_a_range_is_one_element() -> None:
    (element,) = elements_of({"rules": [{"to": ["10.1.0.0/16"], "ports": ["8000-8999"], "protocol": "tcp"}]})["allow"]
    assert element.key == bytes([0, 0, 0, 2, 6, 0, 0, 0, 10, 1, 0, 0, 0x1F, 0x40, 0, 0])
    assert element.end == bytes([0, 0, 0, 2, 6, 0, 0, 0, 10, 1, 255, 255, 0x23, 0x27, 0, 0])


def test_a_pin_is_for_one_port_for_all_or_for_some() -> None:
    board = Switchboard(big_endian=True)
    assert board.pin(2, Protocol.TCP, "192.0.2.1", 5432, 5432, timeout=60).set == "pin"
    assert board.pin(2, Protocol.TCP, "192.0.2.1", 0, 65535, timeout=60).set == "pin_any"
    assert board.pin(2, Protocol.TCP, "192.0.2.1", 8000, 8999, timeout=60).set == "pin_range"


def test_limits_are_those_of_the_budget() -> None:
    (ceiling, budget) = elements.limits("sb7", Budget(connections=3, bytes=1000), used=10)
    assert [element.chain for element in ceiling.elements] == ["over_3"]
    assert [counted(element.expression or b"") for element in budget.elements] == [10]
    assert [len(change.elements) for change in elements.limits("sb7", Budget())] == [1, 0]
