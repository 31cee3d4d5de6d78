"""The one nftables table of a switch, loaded once by the program `nft` and never changed: what differs between sandboxes are elements of its sets.

A packet from a sandbox gets the generation of the sandbox's present policy as its mark, when it comes from the address that its interface was given. Everything else is looked up by that
number: which ports are caught, what holds for addresses that no rule names, what is allowed and denied. A connection that is let through keeps the number, so that one of an earlier policy is
judged again at its next packet, and one of an earlier sandbox is nobody's.

    slot      interface, address          who may send as whom; from the slot's birth
    gen       interface → generation      of the claim, or of the last change of its policy; without one nothing passes
    live      interface, generation       the same, for packets of connections that were let through
    captured  generation, protocol, port  what goes to our resolver or proxy instead of where it was sent
    led       the same without where to   connections that an earlier policy let through directly, and this one would not
    allow, deny, mode, pin…               by generation; see `egress` below for their order
    budget, sent, received                by interface, each element with a state of its own: bytes
    ceiling                               interface → chain that refuses more than so many open connections (`corral.net.ceilings`)
    host                                  the addresses of this machine, which no policy can open

Needs Linux 5.9 (elements with states; reject before routing) and nft 0.9.4.
"""

from __future__ import annotations

import hashlib
from string import Template

from corral import spawn
from corral.errors import SetupError
from corral.net.dial import DIALLED
from corral.net.elements import CANARY, DNS_PORT
from corral.net.netlink import is_missing
from corral.net.nfnetlink import Tables
from corral.node.netns import Namespace

GATEWAY = "192.0.0.1"
"""What sandboxes take for their gateway and name server (of the range that RFC 7335 keeps for such purposes, so that it collides with nothing)."""
SERVICE = "192.0.0.8"
"""Where the resolver and the proxy listen. Not the gateway: only what was caught reaches them, and what is sent there already is not caught."""
PROXY_PORT = 3128
SLOTS = "198.18.0.0/16"
"""Addresses of sandboxes (of the range for benchmarks, RFC 2544, which is routed nowhere)."""
UPLINKS = "198.19.0.0/16"
UPLINK = "up"
"""The switch's end of the way out."""
LOG_GROUP = 1
"""nflog group that tells of what was denied."""
NEW_PER_SECOND = 200
"""New connections of a sandbox each second; twice as many at once."""
LOGGED_PER_SECOND = 20
SPECIAL = ("10.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
"""What only an explicit rule opens: private, carriers' and link-local ranges, and the one public address at which a cloud (Azure) keeps its metadata."""
NEVER = ("0.0.0.0/8", "127.0.0.0/8", "192.0.0.0/24", "198.18.0.0/15", "224.0.0.0/3")
"""What nothing opens."""

_SWITCH = Template("""
table inet $table {
  set $version { type ipv4_addr; }
  set slot     { typeof iifname . ip saddr; }
  map gen      { typeof iifname : meta mark; }
  set live     { typeof iifname . ct mark; }
  map captured { typeof meta mark . meta l4proto . th dport : verdict; flags interval; }
  set led      { typeof meta mark . meta l4proto . th dport; flags interval; }
  map mode     { typeof meta mark : verdict; }
  set allow    { typeof meta mark . meta l4proto . ip daddr . th dport; flags interval; elements = { $canary . tcp . 0.0.0.0 . 0 } }
  set deny     { typeof meta mark . meta l4proto . ip daddr . th dport; flags interval; }
  set pin      { typeof meta mark . meta l4proto . ip daddr . th dport; flags timeout; }
  set pin_any  { typeof meta mark . meta l4proto . ip daddr; flags timeout; }
  set pin_range { typeof meta mark . meta l4proto . ip daddr . th dport; flags interval, timeout; }
  map ceiling  { typeof iifname : verdict; }
  set budget   { typeof iifname; size 65535; }
  set sent     { typeof iifname; size 65535; }
  set received { typeof iifname; size 65535; }
  set newrate  { typeof iifname; size 65535; flags dynamic; }
  set lograte  { typeof iifname; size 65535; flags dynamic; }
  set host     { type ipv4_addr; }
  set never    { type ipv4_addr; flags interval; elements = { $never } }
  set special  { type ipv4_addr; flags interval; elements = { $special } }

  chain raw {
    type filter hook prerouting priority raw; policy accept;
    iifname "sb*" jump from_guest
    iifname "$uplink" ip daddr { $slots, 192.0.0.0/24 } drop
  }
  chain from_guest {
    meta nfproto != ipv4 drop
    iifname . ip saddr != @slot drop
    meta mark set iifname map @gen
  }
  chain nat {
    type nat hook prerouting priority dstnat; policy accept;
    iifname "sb*" meta mark . meta l4proto . th dport vmap @captured
  }
  chain to_dns   { meta l4proto { tcp, udp } dnat ip to $service:$dns
  }
  chain to_proxy { meta l4proto tcp dnat ip to $service:$proxy
  }

  chain input {
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    iifname "sb*" goto service
  }
  chain service {
    meta mark 0 goto denied
    ct status dnat ip daddr $service goto served
    goto denied
  }
  chain served {
    iifname @budget goto denied
    ct state new iifname vmap @ceiling
    ct state new add @newrate { iifname limit rate over $new/second burst $burst packets } goto denied
    goto admitted
  }
  chain output {
    type filter hook output priority filter; policy accept;
    oifname "sb*" ct state established goto ingress
  }

  chain forward {
    type filter hook forward priority filter; policy drop;
    iifname "sb*" oifname "$uplink" goto egress
    iifname "$uplink" oifname "sb*" ct state established,related goto ingress
    iifname "sb*" goto denied
  }
  chain egress {
    meta mark 0 goto denied
    ip daddr @never goto denied
    ip daddr @host goto denied
    meta l4proto != { tcp, udp, icmp } goto denied
    iifname @budget goto denied
    ct state related goto passed
    ct state established iifname . ct mark @live goto passed
    ct state established meta mark . meta l4proto . th dport @led goto denied
    ct state new iifname vmap @ceiling
    ct state new add @newrate { iifname limit rate over $new/second burst $burst packets } goto denied
    meta mark . meta l4proto . ip daddr . th dport @deny goto denied
    meta mark . meta l4proto . ip daddr . th dport @allow goto admitted
    ip daddr @special goto denied
    meta mark vmap @mode
    goto denied
  }
  chain m_open { goto admitted
  }
  chain m_names {
    meta mark . meta l4proto . ip daddr . th dport @pin goto admitted
    meta mark . meta l4proto . ip daddr @pin_any goto admitted
    meta mark . meta l4proto . ip daddr . th dport @pin_range goto admitted
    goto denied
  }
  chain admitted { ct mark set meta mark
    goto passed
  }
  chain passed {
    iifname @sent accept
    accept
  }
  chain ingress {
    oifname @budget drop
    meta l4proto != tcp ct state established oifname . ct mark != @live drop
    oifname @received accept
    accept
  }
  chain denied {
    add @lograte { iifname limit rate $logged/second burst $logged packets } log group $log snaplen 64
    ct state established meta l4proto tcp reject with tcp reset
    meta l4proto tcp reject with icmp admin-prohibited
    meta l4proto udp reject with icmp port-unreachable
    drop
  }
  chain out {
    type nat hook postrouting priority srcnat; policy accept;
    oifname "$uplink" masquerade
  }
}
""")

_HOST = Template("""
table ip $table {
  chain guard {
    type filter hook prerouting priority raw; policy accept;
    iifname "$device" jump from_switch
  }
  chain from_switch {
    ip saddr != $address drop
    fib daddr type { local, broadcast, multicast, anycast } meta l4proto tcp reject with tcp reset
    fib daddr type { local, broadcast, multicast, anycast } drop
  }
  chain dialled {
    type filter hook output priority raw; policy accept;
    meta mark $mark fib daddr type { local, broadcast, multicast, anycast } meta l4proto tcp reject with tcp reset
  }
  chain out {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr $address oifname != "$device" masquerade
  }
}
""")


def ready(namespace: Namespace, tables: Tables) -> None:
    """Load the table into a switch, unless just this one is there. One of another version is replaced, and its elements with it."""
    table = tables.name
    values = {
        "table": table,
        "canary": CANARY,
        "uplink": UPLINK,
        "slots": SLOTS,
        "never": ", ".join(NEVER),
        "special": ", ".join(SPECIAL),
        "service": SERVICE,
        "dns": DNS_PORT,
        "proxy": PROXY_PORT,
        "new": NEW_PER_SECOND,
        "burst": 2 * NEW_PER_SECOND,
        "logged": LOGGED_PER_SECOND,
        "log": LOG_GROUP,
    }
    version = "v" + hashlib.sha256(_SWITCH.substitute(values, version="").encode()).hexdigest()[:12]
    try:
        tables.elements(version)
    except OSError as error:
        if not is_missing(error):
            raise
        text = _SWITCH.substitute(values, version=version)
        namespace.run(lambda: _load(f"table inet {table}\ndelete table inet {table}\n{text}"))


def load_host(table: str, *, device: str, address: str) -> None:
    """In this machine's own namespace: what comes from the switch goes out with our address, and reaches nothing of the machine itself; nor does what the proxy dials."""
    text = _HOST.substitute(table=table, device=device, address=address, mark=DIALLED)
    _load(f"table ip {table}\ndelete table ip {table}\n{text}")


def remove_host(table: str) -> None:
    _load(f"table ip {table}\ndelete table ip {table}\n")


def _load(ruleset: str) -> None:
    try:
        done = spawn.run(["nft", "-f", "-"], timeout=20, input=ruleset.encode())
    except FileNotFoundError:
        raise SetupError("the program nft is missing", hint="run `corral setup`, or install nftables") from None
    if done.code:
        raise SetupError(f"nft refuses the table for sandboxes: {done.stderr.decode(errors='replace').strip()[:500]}", hint="run `corral doctor`")
