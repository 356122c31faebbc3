"""What counts as public, against lists that others publish; and what the operator may write to allow more."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from polyreel.addresses import AllowList, why_not_public
from polyreel.errors import ConfigurationError
from polyreel.profiles import load_settings

# `IPAddressRanges.recommended_v1` of microsoft-antissrf 1.0.0.
MICROSOFT = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::1/128",
    "::/128",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]

SPECIAL = {
    "127.0.0.1": "loopback",
    "0.0.0.0": "this network",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "carrier-grade NAT",
    "100.100.100.200": "carrier-grade NAT",
    "169.254.169.254": "link-local",
    "168.63.129.16": "Azure's platform",
    "192.0.0.192": "IETF protocols",
    "198.19.255.255": "benchmarking",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "255.255.255.255": "reserved",
    "::": "not public",
    "::1": "not public",
    "::7f00:1": "not public",
    "::ffff:127.0.0.1": "not public",
    "::ffff:93.184.216.34": "not public",
    "64:ff9b::a9fe:a9fe": "not public",
    "64:ff9b:1::7f00:1": "not public",
    "100::1": "not public",
    "5f00::1": "not public",
    "fd00:ec2::254": "not public",
    "fe80::1": "not public",
    "fe80::1%eth0": "not public",
    "fec0::1": "not public",
    "ff02::1": "not public",
    "2001::1": "IETF protocols",
    "2001:1ff::1": "IETF protocols",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "6to4",
    "2620:4f:8000::1": "AS112",
    "3fff:fff::1": "documentation",
}

PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "223.255.255.255",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2606:4700:4700::1111",
    "2620:4f:7fff::1",
    "3ffe::1",
]


@pytest.mark.parametrize("network", MICROSOFT)
def test_no_range_that_microsoft_lists_is_public(network):
    listed = ip_network(network)
    assert why_not_public(listed[0])
    assert why_not_public(listed[-1])
    assert why_not_public(listed[listed.num_addresses // 2])


@pytest.mark.parametrize(("address", "kind"), SPECIAL.items())
def test_a_special_address_is_known_for_what_it_is(address, kind):
    assert why_not_public(ip_address(address)) == kind


@pytest.mark.parametrize("address", PUBLIC)
def test_what_lies_beside_the_special_ranges_is_public(address):
    assert why_not_public(ip_address(address)) is None


@pytest.mark.parametrize(
    ("entry", "address", "port", "held"),
    [
        ("10.0.0.0/8", "10.255.0.1", 8080, True),
        ("10.0.0.0/8", "11.0.0.1", 8080, False),
        ("10.0.0.0/8:8080", "10.0.0.1", 8080, True),
        ("10.0.0.0/8:8080", "10.0.0.1", 6379, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3", "10.1.2.4", 443, False),
        ("10.1.2.3:9000", "10.1.2.3", 443, False),
        ("fd00::/8", "fd12::1", 443, True),
        ("fd00::1", "fd00::1", 443, True),
        ("[fd00::1]:8080", "fd00::1", 8080, True),
        ("[fd00::1]:8080", "fd00::1", 80, False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 443, False),
    ],
)
def test_an_allowed_network_holds_its_addresses_on_its_port(entry, address, port, held):
    assert AllowList.read([entry]).holds(ip_address(address), port) is held


@pytest.mark.parametrize(
    ("entry", "host", "port", "named"),
    [
        ("hooks.internal", "hooks.internal", 8080, True),
        ("Hooks.Internal.", "hooks.internal", 8080, True),
        ("hooks.internal:8080", "hooks.internal", 8080, True),
        ("hooks.internal:8080", "hooks.internal", 80, False),
        ("hooks.internal", "other.hooks.internal", 443, False),
        ("hooks.internal", "hooks.internal.evil.example", 443, False),
        ("minio", "minio", 9000, True),
    ],
)
def test_an_allowed_host_is_that_name_and_no_other(entry, host, port, named):
    assert AllowList.read([entry]).names_host(host, port) is named


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("https://hooks.internal", "https://hooks.internal: write a host (hooks.internal), an address or network"),
        ("*.internal", "*.internal: write a host"),
        ("hooks internal", "hooks internal: write a host"),
        ("10.0.0.1/8", "10.0.0.1/8: write the network's first address: 10.0.0.0/8"),
        ("10.0.0.0/33", "10.0.0.0/33: write a host"),
        ("127.1", "127.1: write a host"),
        ("hooks:0", "hooks:0: a port lies between 1 and 65535"),
        ("hooks:65536", "hooks:65536: a port lies between 1 and 65535"),
        ("hooks:http", "hooks:http: write a host"),
        (":8080", ":8080: write a host"),
    ],
)
def test_a_wrong_entry_stops_the_start_and_is_named(entry, message, monkeypatch):
    monkeypatch.setenv("POLYREEL_WEBHOOK_ALLOW", f"10.0.0.0/8,{entry}")
    with pytest.raises(ConfigurationError) as stopped:
        load_settings()
    assert stopped.value.message.startswith(f"webhook_allow: {message}")


def test_an_ipv6_entry_may_stand_in_a_list_that_the_environment_gives(monkeypatch):
    monkeypatch.setenv("POLYREEL_WEBHOOK_ALLOW", "[fd00::1]:8080, fd12::/16, hooks.internal:8080")
    assert load_settings().settings.webhook_allow == ("[fd00::1]:8080", "fd12::/16", "hooks.internal:8080")
