"""Whom the server calls for its clients: nobody inside, however the address is written, named or changed.

Nothing here opens a socket: `Recorder` stands where that would happen, and a refusal is one without any connection.
"""

from __future__ import annotations

import pytest

from polyreel.errors import InvalidRequest, OutboundFailed, UnsafeAddress
from polyreel.outbound import Outbound
from tests.core.recorder import PUBLIC, Recorder, outbound

NOT_PUBLIC = "url must lead to a public address; the operator of this server can allow others (webhook_allow)"
NOT_PLAIN = "url must name a host, or an address in its plain form"
NO_USER = "url must not hold a user name or password"
NOT_ABSOLUTE = "url must be an absolute URL of at most 4096 characters, without spaces or backslashes"
NOT_ASCII = "url must name its host in ASCII (xn--… for other letters)"

#: Refused by the text alone, before any name is asked.
WRITTEN = {
    "https://127.0.0.1/": NOT_PUBLIC,
    "https://127.0.0.1./": NOT_PUBLIC,
    "https://127.255.255.254/": NOT_PUBLIC,
    "https://2130706433/": NOT_PLAIN,
    "https://0x7f000001/": NOT_PLAIN,
    "https://0x7f.0.0.1/": NOT_PLAIN,
    "https://017700000001/": NOT_PLAIN,
    "https://0177.0.0.1/": NOT_PLAIN,
    "https://127.1/": NOT_PLAIN,
    "https://127.0.1/": NOT_PLAIN,
    "https://127.0.0.0x1/": NOT_PLAIN,
    "https://1.2.3.4.5/": NOT_PLAIN,
    "https://256.1.1.1/": NOT_PLAIN,
    "https://0/": NOT_PLAIN,
    "https://0.0.0.0/": NOT_PUBLIC,
    "https://[::1]/": NOT_PUBLIC,
    "https://[::]/": NOT_PUBLIC,
    "https://[0:0:0:0:0:0:0:1]/": NOT_PUBLIC,
    "https://[::ffff:127.0.0.1]/": NOT_PUBLIC,
    "https://[::ffff:7f00:1]/": NOT_PUBLIC,
    "https://[::7f00:1]/": NOT_PUBLIC,
    "https://[::127.0.0.1]/": NOT_PUBLIC,
    "https://10.0.0.1/": NOT_PUBLIC,
    "https://172.16.0.1/": NOT_PUBLIC,
    "https://172.31.255.255/": NOT_PUBLIC,
    "https://192.168.0.1/": NOT_PUBLIC,
    "https://100.64.0.1/": NOT_PUBLIC,
    "https://169.254.169.254/latest/meta-data/": NOT_PUBLIC,
    "https://[fd00:ec2::254]/latest/meta-data/": NOT_PUBLIC,
    "https://168.63.129.16/": NOT_PUBLIC,
    "https://192.0.0.192/": NOT_PUBLIC,
    "https://100.100.100.200/": NOT_PUBLIC,
    "https://[64:ff9b::7f00:1]/": NOT_PUBLIC,
    "https://[64:ff9b::169.254.169.254]/": NOT_PUBLIC,
    "https://[2002:7f00:1::]/": NOT_PUBLIC,
    "https://[2001:0:7f00:1::]/": NOT_PUBLIC,
    "https://[fec0::1]/": NOT_PUBLIC,
    "https://[fe80::1]/": NOT_PUBLIC,
    "https://[fe80::1%25eth0]/": NOT_ASCII,
    "https://[ff02::1]/": NOT_PUBLIC,
    "https://224.0.0.1/": NOT_PUBLIC,
    "https://255.255.255.255/": NOT_PUBLIC,
    "https://[v1.127.0.0.1]/": NOT_ASCII,
    "https://[::1/": NOT_ASCII,
    "https://localhost/": NOT_PUBLIC,
    "https://LOCALHOST/": NOT_PUBLIC,
    "https://localhost./": NOT_PUBLIC,
    "https://redis/": NOT_PUBLIC,
    "https://api.localhost/": NOT_PUBLIC,
    "https://user@good.example/": NO_USER,
    "https://user:password@good.example/": NO_USER,
    "https://good.example@127.0.0.1/": NO_USER,
    "https://@127.0.0.1/": NO_USER,
    "https://１２７.０.０.１/": NOT_ASCII,
    "https://①②⑦.0.0.1/": NOT_ASCII,
    "https://127。0。0。1/": NOT_ASCII,
    "https://ⓛocalhost/": NOT_ASCII,
    "https://bücher.example/": NOT_ASCII,
    "https://127.0.0.%31/": NOT_PLAIN,
    "https://127%2e0%2e0%2e1/": NOT_PLAIN,
    "https://good.example%00.evil/": NOT_PLAIN,
    "https://-good.example/": NOT_PLAIN,
    "https://good..example/": NOT_PLAIN,
    "https://good.example..": NOT_PLAIN,
    "https://" + "a" * 64 + ".example/": NOT_PLAIN,
    "https://good.example\\@127.0.0.1/": NOT_ABSOLUTE,
    "https://127.0.0.1\\.good.example/": NOT_ABSOLUTE,
    "https:\\\\127.0.0.1\\": NOT_ABSOLUTE,
    "https://good.example\t/": NOT_ABSOLUTE,
    "https://good.example\r\nHost: redis/": NOT_ABSOLUTE,
    "https://good.example/\r\nX-Forged: 1": NOT_ABSOLUTE,
    " https://good.example/": NOT_ABSOLUTE,
    "https://good.example/ /": NOT_ABSOLUTE,
    "https://good.example/\u2028": NOT_ABSOLUTE,
    "": NOT_ABSOLUTE,
    "good.example/hook": NOT_ABSOLUTE,
    "//good.example/hook": NOT_ABSOLUTE,
    "https:/good.example/": NOT_ABSOLUTE,
    "https:good.example": NOT_ABSOLUTE,
    "https://": NOT_ASCII,
    "https:///etc/passwd": NOT_ASCII,
    "https://:443/": NOT_ASCII,
    "https://good.example:443:22/": NOT_ASCII,
    "https://good.example/" + "a" * 4096: NOT_ABSOLUTE,
    "http://good.example/": "url must start with https://, got http://",
    "HTTP://good.example/": "url must start with https://, got http://",
    "http://good.example:443/": "url must start with https://, got http://",
    "ftp://good.example/": "url must start with https://, got ftp:",
    "gopher://127.0.0.1:6379/_FLUSHALL": "url must start with https://, got gopher:",
    "file:///etc/passwd": "url must start with https://, got file:",
    "unix:///run/docker.sock": "url must start with https://, got unix:",
    "http+unix://%2Frun%2Fdocker.sock/": "url must start with https://, got http+unix:",
    "dict://127.0.0.1:11211/": "url must start with https://, got dict:",
    "https://good.example:22/": "url must use port 443, got 22",
    "https://good.example:6379/": "url must use port 443, got 6379",
    "https://good.example:80/": "url must use port 443, got 80",
    "https://93.184.216.34:22/": "url must use port 443, got 22",
    "https://good.example:0/": "url must have a port between 1 and 65535, got 0",
    "https://good.example:65536/": "url must have a port between 1 and 65535, got 65536",
    "https://good.example:+443/": NOT_ASCII,
    "https://good.example:４４３/": NOT_ASCII,
}

#: Refused by where the name leads: one address that is not public is enough.
LED = {
    "loopback": ["127.0.0.1"],
    "private": ["10.0.0.5"],
    "metadata": ["169.254.169.254"],
    "metadata of IPv6": ["fd00:ec2::254"],
    "a mapped address": ["::ffff:169.254.169.254"],
    "NAT64 of the metadata": ["64:ff9b::a9fe:a9fe"],
    "6to4 of loopback": ["2002:7f00:1::"],
    "a scoped link-local address": ["fe80::1%2"],
    "public and then private": [PUBLIC, "10.0.0.5"],
    "private and then public": ["10.0.0.5", PUBLIC],
    "public IPv4 and loopback in IPv6": [PUBLIC, "::1"],
    "a private one behind more than are tried": [PUBLIC] * 9 + ["192.168.1.1"],
}


def fetch(calls: Outbound, url: str) -> None:
    """As a picture is fetched."""
    calls.fetch(url, 1000, 5.0)


def post(calls: Outbound, url: str) -> None:
    """As a webhook is sent."""
    calls.post(url, b"{}", {"Content-Type": "application/json"}, 5.0, 1000)


BOTH = pytest.mark.parametrize("call", [fetch, post])


@pytest.mark.parametrize("url", WRITTEN)
def test_an_address_that_is_not_public_is_refused_however_it_is_written(url):
    recorder = Recorder()
    calls = outbound(recorder)
    for call in (fetch, post, lambda calls, url: calls.check_url("url", url)):
        with pytest.raises(InvalidRequest) as refused:
            call(calls, url)
        assert (recorder.connects, refused.value.message, refused.value.field) == ([], WRITTEN[url], "url")


@BOTH
@pytest.mark.parametrize("where", LED)
def test_a_name_is_refused_when_any_of_its_addresses_is_not_public(call, where):
    recorder = Recorder()
    with pytest.raises(UnsafeAddress) as refused:
        call(outbound(recorder, {"good.example": LED[where]}), "https://good.example/x")
    assert (recorder.connects, refused.value.message) == ([], NOT_PUBLIC)


@BOTH
def test_a_public_name_is_called_at_the_address_that_was_looked_at_under_its_own_name(call):
    recorder = Recorder()
    call(outbound(recorder), "https://Good.Example:443/x/../y?token=a%2Fb#fragment")
    assert recorder.connects == [(PUBLIC, 443)]
    assert recorder.tls_names == ["good.example"]
    assert recorder.sent.split(b"\r\n")[0].split()[1:] == [b"/x/../y?token=a%2Fb", b"HTTP/1.1"]
    assert b"\r\nHost: good.example\r\n" in recorder.sent


@BOTH
def test_the_next_address_is_tried_where_one_does_not_answer(call):
    recorder = Recorder(refusing=["2606:4700::1", "1.1.1.1"])
    call(outbound(recorder, {"good.example": ["2606:4700::1", "1.1.1.1", PUBLIC]}), "https://good.example/")
    assert recorder.connects == [("2606:4700::1", 443), ("1.1.1.1", 443), (PUBLIC, 443)]


@BOTH
def test_who_asks_does_not_learn_which_internal_names_exist(call):
    def unknown(_host: str, _port: int) -> list[str]:
        raise OSError("Name or service not known")

    nobody = Outbound(backend=Recorder(), resolver=unknown)
    with pytest.raises(OutboundFailed) as refused:
        call(nobody, "https://no.such.name.example/")
    assert refused.value.message == NOT_PUBLIC


@BOTH
def test_a_name_without_addresses_is_not_called(call):
    recorder = Recorder()
    with pytest.raises(OutboundFailed):
        call(outbound(recorder, {"good.example": []}), "https://good.example/")
    assert recorder.connects == []


@BOTH
def test_a_name_that_answers_differently_each_time_is_called_where_it_was_looked_at(call):
    answers = [[PUBLIC], ["127.0.0.1"]]
    recorder = Recorder()
    calls = Outbound(backend=recorder, resolver=lambda _host, _port: answers.pop(0))
    call(calls, "https://rebind.example/")
    assert recorder.connects == [(PUBLIC, 443)]
    with pytest.raises(UnsafeAddress):
        call(calls, "https://rebind.example/")
    assert (recorder.connects, answers) == ([(PUBLIC, 443)], [])


@pytest.mark.parametrize(
    ("status", "target"),
    [
        (301, "http://169.254.169.254/"),
        (302, "file:///etc/passwd"),
        (303, "gopher://127.0.0.1:6379/_"),
        (307, "https://127.0.0.1/"),
        (308, "//10.0.0.1/"),
    ],
)
def test_a_redirect_is_not_followed(status, target):
    answer = f"HTTP/1.1 {status} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    recorder = Recorder(answer)
    with pytest.raises(OutboundFailed) as failed:
        outbound(recorder).fetch("https://good.example/", 1000, 5.0)
    assert failed.value.message == f"url was answered with status {status}, and redirects are not followed"
    assert outbound(recorder).post("https://good.example/", b"", {}, 5.0, 1000).status == status
    assert recorder.connects == [(PUBLIC, 443), (PUBLIC, 443)]


@BOTH
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_not_used(call, name, monkeypatch):
    monkeypatch.setenv(name, "http://10.0.0.1:3128")
    recorder = Recorder()
    call(outbound(recorder, http=True), "http://good.example/")
    call(outbound(recorder, http=True), "https://good.example/")
    assert recorder.connects == [(PUBLIC, 80), (PUBLIC, 443)]


@BOTH
def test_plain_http_reaches_public_addresses_on_port_80_where_the_operator_says_so(call):
    recorder = Recorder()
    call(outbound(recorder, http=True), "http://good.example/")
    assert (recorder.connects, recorder.tls_names) == ([(PUBLIC, 80)], [])
    for url in ("http://good.example:8080/", "http://10.0.0.1/", "https://good.example:80/"):
        with pytest.raises(UnsafeAddress):
            call(outbound(recorder, http=True), url)
    assert len(recorder.connects) == 1


@BOTH
@pytest.mark.parametrize(
    ("allow", "url", "connects"),
    [
        ("10.0.0.0/8", "http://10.0.0.5:8080/", [("10.0.0.5", 8080)]),
        ("10.0.0.0/8", "http://inside.example:8080/", [("10.0.0.5", 8080)]),
        ("10.0.0.0/8", "https://inside/", [("10.0.0.5", 443)]),
        ("10.0.0.5:8080", "http://inside.example:8080/", [("10.0.0.5", 8080)]),
        ("inside.example", "http://inside.example:9/", [("10.0.0.5", 9)]),
        ("inside.example:8080", "http://inside.example:8080/", [("10.0.0.5", 8080)]),
        ("localhost", "http://localhost:8080/", [("127.0.0.1", 8080)]),
        ("fd00::/8", "http://[fd00::1]:8080/", [("fd00::1", 8080)]),
        ("good.example:8080", "http://good.example:8080/", [(PUBLIC, 8080)]),
    ],
)
def test_what_the_operator_allows_is_reached_over_http_and_on_its_ports(call, allow, url, connects):
    recorder = Recorder()
    names = {"inside.example": ["10.0.0.5"], "inside": ["10.0.0.5"], "localhost": ["127.0.0.1"]}
    calls = outbound(recorder, names, allow=[allow])
    assert calls.check_url("url", url) == url
    call(calls, url)
    assert recorder.connects == connects


@BOTH
@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("10.0.0.0/8", "http://192.168.0.1:8080/"),
        ("10.0.0.0/8", "http://good.example:8080/"),
        ("10.0.0.0/8", "http://mixed.example:8080/"),
        ("10.0.0.0/8", "https://half.example/"),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.5]/"),
        ("10.0.0.5:8080", "http://inside.example:6379/"),
        ("inside.example:8080", "http://inside.example:6379/"),
        ("inside.example", "http://10.0.0.5/"),
        ("inside.example", "https://other.example/"),
    ],
)
def test_nothing_beside_what_the_operator_allows_is_reached(call, allow, url):
    recorder = Recorder()
    names = {
        "inside.example": ["10.0.0.5"],
        "other.example": ["10.0.0.5"],
        "mixed.example": ["10.0.0.5", PUBLIC],
        "half.example": ["10.0.0.5", "192.168.0.1"],
    }
    with pytest.raises(UnsafeAddress):
        call(outbound(recorder, names, allow=[allow]), url)
    assert recorder.connects == []


def test_a_connection_is_never_made_to_a_unix_socket():
    from polyreel.connections import Guard

    with pytest.raises(Exception, match="no unix sockets"):
        Guard(Recorder(), lambda _h, _p: [], lambda _a: None, 0.0).connect_unix_socket("/run/docker.sock")


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("HTTPS://Good.Example.:443/a/./b?x=1#part", "https://good.example/a/./b?x=1"),
        ("https://good.example", "https://good.example"),
        ("https://good.example?x", "https://good.example/?x"),
        ("https://good.example/ü.png", "https://good.example/%C3%BC.png"),
        ("https://good.example/%7euser?sig=a%2Bb", "https://good.example/%7euser?sig=a%2Bb"),
        ("https://[2606:4700:4700:0:0:0:0:1111]/", "https://[2606:4700:4700::1111]/"),
        ("https://under_score.example:/x", "https://under_score.example/x"),
    ],
)
def test_a_url_is_kept_as_it_will_be_asked(url, asked):
    assert outbound(Recorder()).check_url("callback_url", url) == asked


# Peers' vulnerabilities in this very feature, each with what it came in by.


def test_cve_2026_108719_a_video_jobs_callback_does_not_reach_the_inside():
    """LLMGateway posted the ended job to whatever `callback_url` said."""
    recorder = Recorder()
    for url in ("http://169.254.169.254/latest/api/token", "http://127.0.0.1:6379/", "https://internal.example/"):
        with pytest.raises(UnsafeAddress):
            post(outbound(recorder, {"internal.example": ["10.0.0.5"]}), url)
    assert recorder.connects == []


@pytest.mark.parametrize("url", ["https://good.example\\@127.0.0.1/", "https://127.0.0.1\\@good.example/"])
def test_cve_2026_24779_the_url_is_read_once_and_not_by_two_readers(url):
    """vLLM checked the host that one parser saw and fetched from the one that another saw."""
    recorder = Recorder()
    with pytest.raises(InvalidRequest):
        fetch(outbound(recorder), url)
    assert recorder.connects == []


def test_cve_2026_34753_media_are_not_fetched_from_inside():
    """vLLM's batch runner fetched any URL that stood in its input."""
    recorder = Recorder()
    with pytest.raises(UnsafeAddress):
        fetch(outbound(recorder, {"media.example": ["192.168.1.10"]}), "https://media.example/cat.png")
    assert recorder.connects == []


def test_cve_2026_33626_a_picture_is_not_fetched_from_the_clouds_metadata():
    """LMDeploy's `load_image` asked no address where it lies."""
    recorder = Recorder()
    for url in ("http://169.254.169.254/latest/meta-data/iam/", "https://[fd00:ec2::254]/", "https://168.63.129.16/"):
        with pytest.raises(UnsafeAddress):
            fetch(outbound(recorder, http=True), url)
    assert recorder.connects == []


def test_cve_2026_63764_a_checked_url_does_not_redirect_to_an_unchecked_one():
    """LMDeploy looked at the first URL and followed its redirects unseen."""
    recorder = Recorder(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:8000/\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(OutboundFailed):
        fetch(outbound(recorder), "https://good.example/cat.png")
    assert recorder.connects == [(PUBLIC, 443)]
