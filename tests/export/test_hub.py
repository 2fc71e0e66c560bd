"""`export --push_to_hub`: through the hub's own client, to a server that answers as the hub does."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hand_made import Export, HandMade

Asked = list[tuple[str, Any]]
"""What was asked of the server: the path, and the body."""


@pytest.fixture
def hub() -> Iterator[tuple[str, Asked]]:
    """The address of a server that makes repositories and takes commits, and what it is asked."""
    asked: Asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            asked.append((path, lines))
            if path.endswith("/preupload/main"):
                files = [{"path": one["path"], "uploadMode": "regular"} for one in lines[0]["files"]]
                answer: dict[str, Any] = {"files": [{**one, "shouldIgnore": False} for one in files]}
            elif path.endswith("/commit/main"):
                answer = {
                    "commitUrl": f"http://{self.headers['Host']}/datasets/us/data/commit/1",
                    "commitOid": "1",
                    "pullRequestUrl": None,
                }
            elif path == "/api/validate-yaml":
                answer = {"errors": [], "warnings": []}
            elif "forbidden" in body.decode():
                self.send_error(403)
                return
            else:
                answer = {"url": f"http://{self.headers['Host']}/datasets/{lines[0].get('organization', 'me')}/data"}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def export(endpoint: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own: the client reads the hub's address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "montessori_pl", "export", "iter1", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_all_files_in_one_commit(run: HandMade, hub: tuple[str, Asked]) -> None:
    endpoint, asked = hub
    done = export(endpoint, "--output", "out", "--push_to_hub", "us/data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed to {endpoint}/datasets/us/data"
    made = dict(asked)["/api/repos/create"][0]
    assert (made["name"], made["organization"], made["type"], made["visibility"]) == (
        "data",
        "us",
        "dataset",
        "private",
    )
    commit = dict(asked)["/api/datasets/us/data/commit/main"]
    files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in commit if one["key"] == "file"}
    assert files == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert "hf_secret" not in done.stdout + done.stderr + str(asked)


def test_public_if_you_say_so(run: HandMade, hub: tuple[str, Asked]) -> None:
    endpoint, asked = hub
    export(endpoint, "--output", "out", "--push_to_hub", "us/data", "--public")
    assert dict(asked)["/api/repos/create"][0].get("visibility", "public") == "public"


@pytest.mark.parametrize("reached", [True, False])
def test_what_was_exported_stays_when_the_hub_refuses(run: HandMade, hub: tuple[str, Asked], reached: bool) -> None:
    done = export(hub[0] if reached else "http://127.0.0.1:9", "--output", "out", "--push_to_hub", "forbidden/data")
    assert done.returncode == 2
    said = done.stderr.strip()
    assert said.startswith("error: out was written, and not pushed to forbidden/data (")
    assert said.endswith("); push it later with `hf upload forbidden/data out --repo-type dataset`")
    assert said.count("\n") == 0
    assert Path("out/train.jsonl").exists()


def test_mistakes_are_found_before_anything_is_written(
    run: HandMade, mistake: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert mistake("iter1", "--push_to_hub", "us/data").startswith("--push_to_hub needs your token for the hub: run")
    assert "'a b' is no name of a repository" in mistake("iter1", "--push_to_hub", "a b")
    assert "give it together with --push_to_hub" in mistake("iter1", "--public")
