"""What is malformed as such: JSON, sizes, types, encodings; with a real server for what only sockets can say."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
from django.conf import settings

from hpts.run import server_command
from tests.conftest import Api, Json, Lender, accrual_of, new_key, payment_of, posted, refused

Unmoved = Callable[[], AbstractContextManager[None]]
Talk = Callable[..., "Heard"]
PATH = "/v1/payments"
LIMIT = 256 * 1024


@pytest.fixture
def good(acme: Lender) -> Json:
    return payment_of(acme.loan)


# --- What is no JSON -------------------------------------------------------------------------------------------------


def spoilt(body: Json, spoil: str) -> bytes:
    """A good payment made malformed in one way."""
    text = json.dumps(body)
    opened = text[:-1]
    nest = {"[": "]", '{"a":': "}"}

    def deep(opening: str, depth: int) -> str:
        return f'{opened}, "metadata": {opening * depth}1{nest[opening] * depth}}}'

    ways: dict[str, Callable[[], str | bytes]] = {
        "empty": lambda: "",
        "white space": lambda: " \r\n\t",
        "cut": lambda: opened,
        "trailing garbage": lambda: f"{text} x",
        "trailing comma": lambda: f"{opened},}}",
        "trailing NUL": lambda: f"{text}\x00",
        "two documents": lambda: text + text,
        "two lines": lambda: f"{text}\n{text}",
        "block comment": lambda: f"/* */{text}",
        "line comment": lambda: f"{text}// end",
        "single quotes": lambda: text.replace('"', "'"),
        "bare names": lambda: text.replace('"loan_id"', "loan_id"),
        "NaN": lambda: f'{opened}, "metadata": NaN}}',
        "Infinity": lambda: f'{opened}, "metadata": Infinity}}',
        "-Infinity": lambda: f'{opened}, "metadata": -Infinity}}',
        "NaN in depth": lambda: f'{opened}, "metadata": {{"a": [NaN]}}}}',
        "hexadecimal": lambda: f'{opened}, "metadata": 0x10}}',
        "leading zero": lambda: f'{opened}, "metadata": 010}}',
        "leading plus": lambda: f'{opened}, "metadata": +1}}',
        "5,000 digits": lambda: f'{opened}, "metadata": {"9" * 5_000}}}',
        "a member twice": lambda: f'{opened}, "amount_minor": "1"}}',
        "a member twice, escaped": lambda: f'{opened}, "\\u0061mount_minor": "1"}}',
        "a member twice with the same value": lambda: f'{opened}, "currency": "USD"}}',
        "a member twice in depth": lambda: f'{opened}, "metadata": {{"a": "1", "b": "2", "a": "1"}}}}',
        "raw newline in a string": lambda: text.replace("ach", "a\nch"),
        "raw NUL in a string": lambda: text.replace("ach", "a\x00ch"),
        "bad escape": lambda: text.replace("ach", "\\xach"),
        "cut escape": lambda: text.replace("ach", "\\u00"),
        "byte-order mark": lambda: b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": lambda: text.encode("utf-16"),
        "UTF-16 without mark": lambda: text.encode("utf-16-le"),
        "UTF-32": lambda: text.encode("utf-32"),
        "latin-1": lambda: text.replace("ach", "é").encode("latin-1"),
        "a byte that is no UTF-8": lambda: text.encode().replace(b"ach", b"\xff"),
        "overlong UTF-8": lambda: text.encode().replace(b"ach", b"\xc0\xaf"),
        "surrogate in UTF-8": lambda: text.encode().replace(b"ach", b"\xed\xa0\x80"),
        "cut UTF-8": lambda: text.encode().replace(b"ach", b"\xe2\x82"),
        "lists 100,000 deep": lambda: deep("[", 100_000),
        "objects 40,000 deep": lambda: deep('{"a":', 40_000),
        "lists 5,000 deep": lambda: deep("[", 5_000),
        "objects 5,000 deep": lambda: deep('{"a":', 5_000),
        "open lists": lambda: "[" * 200_000,
        "open objects": lambda: '{"a":' * 50_000,
    }
    made = ways[spoil]()
    return made if isinstance(made, bytes) else made.encode()


SPOILS = [
    *[
        "empty",
        "white space",
        "cut",
        "trailing garbage",
        "trailing comma",
        "trailing NUL",
        "two documents",
        "two lines",
    ],
    *["block comment", "line comment", "single quotes", "bare names", "NaN", "Infinity", "-Infinity", "NaN in depth"],
    *["hexadecimal", "leading zero", "leading plus", "5,000 digits", "a member twice", "a member twice, escaped"],
    *[
        "a member twice with the same value",
        "a member twice in depth",
        "raw newline in a string",
        "raw NUL in a string",
    ],
    *["bad escape", "cut escape", "byte-order mark", "UTF-16", "UTF-16 without mark", "UTF-32", "latin-1"],
    *["a byte that is no UTF-8", "overlong UTF-8", "surrogate in UTF-8", "cut UTF-8", "lists 100,000 deep"],
    *["objects 40,000 deep", "lists 5,000 deep", "objects 5,000 deep", "open lists", "open objects"],
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_not_one_json_document_is_refused(api: Api, good: Json, nothing_moves: Unmoved, spoil: str) -> None:
    with nothing_moves():
        refused(api.post(PATH, spoilt(good, spoil)), 400, "malformed_json")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_hundred_levels_are_json_and_no_metadata(api: Api, good: Json, nothing_moves: Unmoved, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    body = f'{json.dumps(good)[:-1]}, "metadata": {opening * 100}1{closing * 100}}}'
    with nothing_moves():
        answer = api.post(PATH, body)
        problem = refused(answer, 400, json.loads(answer.content)["code"])
        assert problem["code"] in ("validation_failed", "malformed_json")


def test_a_list_with_a_member_twice_is_refused(acme: Lender, nothing_moves: Unmoved) -> None:
    item = '{"loan_id": "%s", "outstanding_principal_minor": "0", "interest_minor": "1", "interest_minor": "2"}'
    body = accrual_of("2026-01-06", (acme.loan, 0, 1)) | {"loans": ["?"]}
    raw = json.dumps(body).replace('"?"', item % acme.loan.loan_id)
    with nothing_moves():
        refused(acme.api.post("/v1/accruals/batch", raw), 400, "malformed_json")


# --- Types and encodings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
def test_json_in_utf8_is_taken(api: Api, good: Json, content_type: str) -> None:
    posted(api.post(PATH, good, content_type=content_type))


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "text/json",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/problem+json",
        "application/jsonx",
        "application/json, application/json",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json; charset=junk\x80",
        "application/json; charset=" + "x" * 5_000,
        "application/*",
        "json",
        ";",
        "é",
    ],
)
def test_another_type_is_refused(api: Api, good: Json, nothing_moves: Unmoved, content_type: str) -> None:
    with nothing_moves():
        refused(api.post(PATH, good, content_type=content_type), 415, "unsupported_media_type")


def test_a_form_is_refused_though_it_says_the_same(api: Api, good: Json, nothing_moves: Unmoved) -> None:
    from urllib.parse import urlencode

    with nothing_moves():
        form = urlencode(good)
        refused(api.post(PATH, form, content_type="application/x-www-form-urlencoded"), 415, "unsupported_media_type")
        refused(api.post(f"{PATH}?{form}", b""), 400, "malformed_json")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x-gzip", "gzip, gzip", "identity, gzip", "GZIP", "junk"])
def test_a_compressed_body_is_refused(api: Api, good: Json, nothing_moves: Unmoved, coding: str) -> None:
    body = gzip.compress(json.dumps(good).encode())
    with nothing_moves():
        refused(api.post(PATH, body, headers={"Content-Encoding": coding}), 415, "unsupported_media_type")


def test_a_body_that_is_not_compressed_may_say_so(api: Api, good: Json) -> None:
    posted(api.post(PATH, good, headers={"Content-Encoding": "identity"}))


# --- Sizes -----------------------------------------------------------------------------------------------------------


def padded(body: Json, size: int) -> bytes:
    return json.dumps(body).encode().ljust(size)


def test_a_body_has_at_most_256_kib(api: Api, good: Json, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        for size in (LIMIT + 1, 2 * LIMIT):
            refused(api.post(PATH, padded(good, size)), 413, "payload_too_large")
    posted(api.post(PATH, padded(good, LIMIT)))


def test_a_batch_has_at_most_16_mib(acme: Lender, nothing_moves: Unmoved) -> None:
    body, limit = accrual_of("2026-01-06", (acme.loan, 0, 1)), 16 * 1024 * 1024
    with nothing_moves():
        refused(acme.api.post("/v1/accruals/batch", padded(body, limit + 1)), 413, "payload_too_large")
    posted(acme.api.post("/v1/accruals/batch", padded(body, limit)))


@pytest.mark.parametrize("length", ["999999999999999999999", "9" * 5_000, "-1", "1e3", "abc", "\u0665", "+5", "5.0"])
def test_a_length_that_is_junk_is_refused(api: Api, good: Json, nothing_moves: Unmoved, length: str) -> None:
    with nothing_moves():
        answer = api.post(PATH, good, CONTENT_LENGTH=length)
        assert answer.status_code in (400, 413), answer.content
        refused(answer, answer.status_code, json.loads(answer.content)["code"])


def test_a_million_members_are_too_large(api: Api, nothing_moves: Unmoved) -> None:
    body = "{" + ",".join(f'"{n}":0' for n in range(1_000_000)) + "}"
    with nothing_moves():
        refused(api.post(PATH, body), 413, "payload_too_large")


# --- NUL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [f"{PATH}%00", "/v1/%00", "/%00", "/v1/loans/%00/balance", f"{PATH}?a=%00", f"{PATH}?%00"]
)
def test_nul_in_the_url_is_refused(api: Api, good: Json, nothing_moves: Unmoved, path: str) -> None:
    with nothing_moves():
        answer = api.post(path, good)
        assert answer.status_code in (400, 404), answer.content
        refused(answer, answer.status_code, "validation_failed" if answer.status_code == 400 else "not_found")


@pytest.mark.parametrize(
    "name", ["HTTP_TRACEPARENT", "HTTP_IF_MATCH", "HTTP_ACCEPT", "HTTP_X_REQUEST_ID", "HTTP_USER_AGENT"]
)
@pytest.mark.parametrize("value", ["\x00", "é\xff", "x" * 10_000, "\n"])
def test_junk_in_a_header_is_never_an_error_of_ours(api: Api, good: Json, name: str, value: str) -> None:
    answer = api.post(PATH, good, **{name: value})
    assert answer.status_code in (201, 400, 406, 412), answer.content


# --- A real server ---------------------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """One answer. The status is 0 when the server just hung up."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Server:
    """The product's own web server, spoken to in bytes."""

    def __init__(self, port: int) -> None:
        self.port = port

    def say(self, raw: bytes, *, half_close: bool = False) -> Heard:
        """Send bytes and read one answer. `half_close`: say that nothing more will come."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as wire:
            try:
                wire.sendall(raw)
                if half_close:
                    wire.shutdown(socket.SHUT_WR)
                answer = http.client.HTTPResponse(wire, method=raw.partition(b" ")[0].decode("latin-1"))
                answer.begin()
                return Heard(answer.status, answer.headers, answer.read())  # type: ignore[arg-type]
            except (ConnectionError, http.client.BadStatusLine):
                return Heard(0, {}, b"")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"HPTS_WEB_WORKERS": "1", "HPTS_WEB_THREADS": "4", "HPTS_ISSUER": settings.ISSUER}
    with log.open("wb") as output:
        process = subprocess.Popen(
            server_command(f"127.0.0.1:{port}"), cwd=settings.BASE_DIR, env=environment, stdout=output, stderr=output
        )
        try:
            _wait_until_alive(Server(port), process, log)
            yield Server(port)
        finally:
            process.send_signal(signal.SIGQUIT)  # Without the grace that it gives to idle connections.
            process.wait(timeout=15)


def _wait_until_alive(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if server.say(b"GET /v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


@pytest.fixture
def talk(server: Server, api: Api) -> Talk:
    """`talk(body, "Name: value", ...)` posts a payment in raw bytes; a header of the same name replaces the usual one."""

    def say(
        body: bytes, *lines: str, method: str = "POST", path: str = PATH, half_close: bool = False, length: bool = True
    ) -> Heard:
        usual = {
            "Host": "localhost",
            "Authorization": f"Bearer {api.token()}",
            "Content-Type": "application/json",
            "Idempotency-Key": new_key(),
        }
        if length:
            usual["Content-Length"] = str(len(body))
        given = {line.partition(":")[0].lower() for line in lines}
        head = [f"{name}: {value}" for name, value in usual.items() if name.lower() not in given]
        raw = "\r\n".join([f"{method} {path} HTTP/1.1", *head, *lines, "", ""]).encode("latin-1")
        return server.say(raw + body, half_close=half_close)

    return say


def is_problem(heard: Heard, status: int, code: str) -> None:
    assert heard.status == status, heard
    assert heard.headers["Content-Type"] == "application/problem+json"
    assert json.loads(heard.body)["code"] == code
    assert json.loads(heard.body)["instance"] == heard.headers["X-Request-Id"]


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end


CHUNKED = "Transfer-Encoding: chunked"


def test_the_server_takes_a_payment(talk: Talk, good: Json) -> None:
    status, headers, body = talk(json.dumps(good).encode())
    assert status == 201, body
    assert "payment_event_id" in json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Request-Id"]


def test_a_chunked_body_is_taken(talk: Talk, good: Json) -> None:
    raw = json.dumps(good).encode()
    assert talk(chunked(raw[:10], raw[10:]), CHUNKED, length=False)[0] == 201


def test_a_chunked_body_has_a_limit_too(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        heard = talk(chunked(*[padded(good, LIMIT), b" " * 1_000]), CHUNKED, length=False)
        is_problem(heard, 413, "payload_too_large")


def test_a_chunked_body_without_end_posts_nothing(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    raw = json.dumps(good).encode()
    with nothing_moves():
        for end in (b"", b"5\r\nab", b"zz\r\n", b"-1\r\n"):
            assert talk(chunked(raw, end=end), CHUNKED, length=False, half_close=True).status in (0, 400), end


def test_a_length_beyond_the_body_posts_nothing(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    """The client promises more than it sends and hangs up; a document that is whole so far is no exception."""
    raw = json.dumps(good).encode()
    with nothing_moves():
        for body in (raw, raw[:-5], b""):
            assert talk(body, f"Content-Length: {len(raw) + 100}", half_close=True).status in (0, 400), body


def test_a_body_without_length_is_no_body(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        is_problem(talk(json.dumps(good).encode(), length=False), 400, "malformed_json")


def test_a_length_short_of_the_body_posts_nothing(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    raw = json.dumps(good).encode()
    with nothing_moves():
        is_problem(talk(raw, f"Content-Length: {len(raw) - 1}"), 400, "malformed_json")


@pytest.mark.parametrize("lengths", [["abc"], ["-5"], ["5", "6"], ["9" * 5_000], ["1e3"], ["0x10"], ["+5"]])
def test_a_length_that_is_junk_posts_nothing(
    talk: Talk, good: Json, nothing_moves: Unmoved, lengths: list[str]
) -> None:
    with nothing_moves():
        lines = [f"Content-Length: {length}" for length in lengths]
        assert 400 <= talk(json.dumps(good).encode(), *lines).status < 500


def test_length_and_chunks_together_are_refused(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    raw = json.dumps(good).encode()
    with nothing_moves():
        for line in (
            CHUNKED,
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding : chunked",
        ):
            assert talk(chunked(raw), line, "Content-Length: 5").status in (0, 400, 501), line


def test_two_keys_are_refused(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    raw = json.dumps(good).encode()
    with nothing_moves():
        for second in ("another-key", "the-same-key"):
            heard = talk(raw, "Idempotency-Key: the-same-key", f"Idempotency-Key: {second}")
            is_problem(heard, 400, "idempotency_key_invalid")


def test_a_key_by_another_name_is_no_key(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    """A header with underscores must not pass for the one with dashes."""
    raw = json.dumps(good).encode()
    with nothing_moves():
        status, _, body = talk(raw, "Idempotency_Key: abcdefgh", "Idempotency-Key:")
        assert status == 400, body


@pytest.mark.parametrize("key", ["abcdefgh\xe9", "abcdefgh\x80", '"abcdefgh"', "a b c d e f", "x" * 256])
def test_a_malformed_key_is_refused(talk: Talk, good: Json, nothing_moves: Unmoved, key: str) -> None:
    with nothing_moves():
        assert talk(json.dumps(good).encode(), f"Idempotency-Key: {key}")[0] == 400


def test_two_tokens_are_refused(talk: Talk, good: Json, api: Api, nothing_moves: Unmoved) -> None:
    with nothing_moves():
        heard = talk(json.dumps(good).encode(), *[f"Authorization: Bearer {api.token()}"] * 2)
        is_problem(heard, 401, "invalid_token")


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "local\xe9host", "a b", "[::1", "localhost:99999x"]
)
def test_another_host_is_refused(talk: Talk, good: Json, nothing_moves: Unmoved, host: str) -> None:
    with nothing_moves():
        assert talk(json.dumps(good).encode(), f"Host: {host}")[0] == 400


def test_many_or_large_headers_are_refused(talk: Talk, good: Json, nothing_moves: Unmoved) -> None:
    raw = json.dumps(good).encode()
    with nothing_moves():
        for lines in ([f"X-Filler-{n}: x" for n in range(1_000)], ["X-Filler: " + "x" * 65_536]):
            status = talk(raw, *lines)[0]
            assert status == 0 or 400 <= status < 500
        for line in ("X-Filler: a\x00b", "X-Filler", ": x", "X Filler: y", "X-Filler: a\rb"):
            status = talk(raw, line)[0]
            assert status == 0 or 400 <= status < 500, line


def test_a_long_path_is_refused(talk: Talk) -> None:
    status = talk(b"", method="GET", path="/v1/" + "x" * 65_536)[0]
    assert status == 0 or 400 <= status < 500


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_another_method_is_refused(talk: Talk, method: str) -> None:
    heard = talk(b"", method=method)
    is_problem(heard, 405, "method_not_allowed")
    assert heard[1]["Allow"] == "POST"


def test_head_has_no_body(talk: Talk, acme: Lender) -> None:
    status, headers, body = talk(b"", method="HEAD", path="/v1/health/live")
    assert (status, headers["Content-Type"], body) == (200, "application/json", b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_hung_up_on(server: Server, raw: bytes) -> None:
    status, _, _ = server.say(raw, half_close=True)
    assert status < 500 or status == 505
