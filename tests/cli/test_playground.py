"""`playground` as a user meets it: what is refused in one line, and how it ends."""

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TWO, tiny_run

from gradroute.cli import playground
from gradroute.cli.main import main
from gradroute.playground.asked import read_asked
from gradroute.system.files import write_lines

installed = pytest.mark.skipif(
    not all(map(playground.find_spec, playground.PACKAGES)),
    reason="the extra playground is not installed",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    tiny_run(root, "one", *TWO)
    begun = root / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_bytes((root / "one" / "config.yaml").read_bytes())
    return root


def none(run: str, name: str) -> Any:
    """No row is found."""
    raise AssertionError(name)


def refused(capsys: pytest.CaptureFixture[str], runs: Path, *words: str) -> tuple[int, str]:
    code = main(["playground", *words, "--runs", str(runs)])
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    return code, err


def test_without_the_extra_one_line_says_what_installs_it(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground, "find_spec", lambda name: None)
    code, told = refused(capsys, runs, "one")
    assert code == 4 and "pip install 'gradroute[playground]'" in told


@installed
def test_a_port_in_use_a_run_without_checkpoint_and_a_wrong_file_are_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, told = refused(capsys, runs, "one", "--port", port)
        assert code == 4 and f"port {port} of 127.0.0.1 cannot be used" in told
    code, told = refused(capsys, runs, "one", "begun")
    assert code == 4 and "begun has 0 of 3 steps" in told
    code, told = refused(capsys, runs, "one", "--pins", "pins.txt")
    assert code == 2 and ".jsonl" in told
    code, told = refused(capsys, runs, "one", "--row", "s1")
    assert code == 2 and "no row 's1' that was scored; gradroute find scores rows" in told
    code, told = refused(capsys, runs, "nobody")
    assert code == 2 and "no run 'nobody'" in told


def test_a_port_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    for port in ("x", "70000", "-1"):
        with pytest.raises(SystemExit):
            main(["playground", "one", "--port", port])
    assert "from 0 to 65535" in capsys.readouterr().err


@installed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_with_a_plain_line_in_the_middle_of_a_generation(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    from gradroute.playground import serving
    from gradroute.playground.worker import run_jobs

    heard: list[str] = []

    def interrupted(jobs: Any, played: Any) -> None:
        def deliver(event: Any) -> None:
            heard.append(event.name if event else "end")
            if heard.count("tokens") == 5:
                os.kill(os.getpid(), number)

        asked = "prompt=A&c=full&c=base&tokens=400"
        adapters = {"one": played["one"].adapters}
        settings = played["one"].config.evaluate
        jobs.submit("p", read_asked(asked, adapters, settings, ("bad",), none), deliver)
        run_jobs(jobs, played)

    class Stopped(serving.Jobs):
        def end(self) -> None:
            os.kill(os.getpid(), number)  # somebody asks again
            super().end()

    monkeypatch.setattr(serving, "run_jobs", interrupted)
    monkeypatch.setattr(serving, "Jobs", Stopped)
    assert main(["playground", "one", "--runs", str(runs)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^The playground .*: http://127\.0\.0\.1:\d+/[\w-]{32}/\n$", out)
    assert err.endswith("The playground has ended.\n") and "Traceback" not in err
    assert "done" not in heard and heard.count("tokens") < 400


@installed
def test_a_row_that_was_found_is_in_the_address_that_is_printed(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradroute.playground import serving

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    line = {"id": "s 1", "prompt": "", "text": "THE FOX RAN", "score": 2.5, "p": 0.01, "q": 0.04,
            "found": True, "label": "bad", "true_label": "bad"}  # fmt: skip
    scores = runs / "one" / "found" / "adapter_scores.jsonl"
    write_lines(scores, [line])
    monkeypatch.setattr(serving, "run_jobs", ended)
    assert main(["playground", "one", "--row", "s 1", "--runs", str(runs)]) == 0
    assert capsys.readouterr().out.endswith("/#row=adapter%3As+1\n")
    scores.unlink()
