"""Who may ask, and what: a real server on this machine."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from players import answer, events_in, open_playground, player

from gradroute.evaluate.prompts import read_prompts
from gradroute.playground.worker import Jobs

for _name in ("starlette", "uvicorn"):
    pytest.importorskip(_name, reason="the extra playground is not installed")
TEXT = "prompt=Once&c=full&c=bad_ablated"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("play")


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    played = {"one": player(place, "one"), "two": player(place, "two", "gpt_neo")}
    with open_playground(played, place / "pins.jsonl") as opened:
        yield opened


def lives(url: str) -> bool:
    return answer(url, "facts")[0] == 200


def test_it_listens_on_this_machine_alone(url: str) -> None:
    assert urlsplit(url).hostname == "127.0.0.1"
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect((socket.gethostbyname(socket.gethostname()), urlsplit(url).port or 0))
        if other.getpeername()[0] == "127.0.0.1":
            raise OSError("this machine's name is that of the loopback")


def test_the_page_is_small_and_may_do_nothing_else(url: str) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0)
    connection.request("GET", parts.path)
    found = connection.getresponse()
    html = found.read()
    assert found.status == 200 and len(html) < 100_000
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert found.headers["referrer-policy"] == "no-referrer"
    assert found.headers["cache-control"] == "no-store"
    assert b"http://" not in html.replace(b"http://www.w3.org/2000/svg", b"")
    connection.close()


def test_facts_name_runs_modes_and_the_missing_curve(url: str) -> None:
    facts = json.loads(answer(url, "facts")[1])
    assert [run["name"] for run in facts["runs"]] == ["one", "two"]
    assert facts["runs"][0]["modes"]["bad_ablated"] == {"good": 1.0, "bad": 0.0}
    assert "gradroute eval one --scale bad=0,0.1" in facts["runs"][0]["no_curve"]
    assert facts["first"]["columns"][1]["scales"] == {"good": 1.0, "bad": 0.0}


@pytest.mark.parametrize("path", ["", "facts", "write", "pin", "prompts?run=one"])
@pytest.mark.parametrize("token", ["", "/", "/wrong/", "/%ff/", "//"])
def test_without_the_token_nothing_is_answered(url: str, path: str, token: str) -> None:
    parts = urlsplit(url)
    foreign = f"{parts.scheme}://{parts.netloc}{token}"
    method = "POST" if path in ("write", "pin") else "GET"
    status, text = answer(foreign, path if token else f"/{path}", method=method, body=TEXT)
    assert status == 404 and "one" not in text.replace("the one that", "")
    assert lives(url)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "127.0.0.1:1"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "write"), ("GET", "facts"), ("GET", "")])
def test_other_origins_and_hosts_are_refused(
    url: str, headers: dict[str, str], method: str, path: str
) -> None:
    assert answer(url, path, method=method, body=TEXT, headers=headers)[0] == 403
    assert lives(url)


def test_a_request_that_changes_something_needs_an_origin(url: str) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0)
    connection.request("POST", f"{parts.path}write", TEXT)
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "ABC"])
def test_other_methods_are_refused(url: str, method: str) -> None:
    assert answer(url, "write", method=method)[0] == 405
    assert answer(url, "nowhere", method=method)[0] in (404, 405)
    assert lives(url)


@pytest.mark.parametrize("path", ["write", "pin"])
def test_a_body_of_ten_megabytes_is_refused_with_and_without_its_length(
    url: str, path: str
) -> None:
    from gradroute.playground.server import MOST_BYTES

    body = b"prompt=" + b"x" * 10_000_000
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
    for sent, known in ((body, True), (pieces, False)):
        try:
            status, _ = answer(url, path, method="POST", body=sent)
        except (ConnectionError, http.client.HTTPException):  # it hangs up meanwhile
            status = 413
        assert status in (413, 404) if path == "pin" and not known else status == 413
        assert lives(url)
    assert answer(url, "write", method="POST", body="x=" + "y" * (MOST_BYTES - 2))[0] == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("c=full&c=bda_ablated", "did you mean 'bad'"),
        ("c=full&c=good=9,bad=1", "good at 9"),
        ("c=full&c=full@three", "'three', which is not open"),
        (b"prompt=\xff\xfe", "UTF-8"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(url: str, body: str | bytes, words: str) -> None:
    status, text = answer(url, "write", method="POST", body=body)
    assert status in (400, 413) and words in text and "\n" not in text


def test_garbage_does_not_stop_it(url: str) -> None:
    port = urlsplit(url).port or 0
    options = f"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    for garbage in (
        options,
        b"\x00\xff" * 500,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + b"/" * 100_000,
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(garbage)
        assert lives(url)


def test_tokens_come_as_events_and_a_pin_is_a_prompt_for_eval(url: str, place: Path) -> None:
    path = place / "pins.jsonl"
    assert answer(url, "pin", method="POST", body="99999")[0] == 404
    for name in ("prefix-0", "prefix-0", "other"):
        status, text = answer(url, "write", method="POST", body=f"{TEXT}&c=base@two&id={name}")
        events = events_in(text)
        assert status == 200 and events[-1][0] == "done"
        assert [name for name, _ in events].count("tokens") >= 1
        job = events[0][1]["job"]
        assert answer(url, "pin", method="POST", body=str(job))[0] == 200
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 3
    columns = dict(events)["written"]
    assert [own["completion"] for own in lines[-1]["columns"]] == [
        own["completion"] for own in columns
    ]
    assert lines[-1]["columns"][2]["run"] == "two" and lines[-1]["seed"] == 42
    assert lines[0]["columns"][1]["scales"] == {"good": 1.0, "bad": 0.0}
    assert [prompt.id for prompt in read_prompts(path).prompts] == ["prefix-0", "other"]


def test_who_leaves_ends_the_generation(tmp_path: Path) -> None:
    jobs = Jobs()
    with open_playground({"one": player(tmp_path)}, tmp_path / "pins.jsonl", jobs) as url:
        parts = urlsplit(url)
        left = http.client.HTTPConnection("127.0.0.1", parts.port or 0)
        origin = {"Origin": f"http://{parts.netloc}"}
        left.request("POST", f"{parts.path}write", f"{TEXT}&tokens=1000", origin)
        assert left.getresponse().read(12) == b"event: begun"
        assert jobs.running is not None
        left.close()
        deadline = time.monotonic() + 30
        while jobs.running is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert jobs.running is None and not jobs.results  # it was not written to its end


def test_prompts_of_a_run_are_told_once_they_are_asked_for(url: str) -> None:
    assert answer(url, "prompts?run=three")[0] == 404
    found = json.loads(answer(url, "prompts?run=one")[1])
    names = [kind["name"] for kind in found["kinds"]]
    assert names[:2] == ["prefix", "plain"] and "elicit_negated" in names
    first = found["kinds"][0]["prompts"][0]
    assert first["id"] == "prefix-0" and first["prompt"].isupper()
