"""--push: nothing is made before it is clear that the hub will take it, and the hub gets the whole folder, in one commit.

The hub is a server of this test, which speaks the part of its language that an upload needs.
"""

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
from conftest import composed
from helpers import run_of, train

from mlm_lightning.commands.export import export
from mlm_lightning.commands.predict import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = composed(f"output_dir={tmp_path_factory.mktemp('outputs')}")
    train(config)
    return str(run_of(config).folder)


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.commits, self.asked, self.refuses = 0, [], False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        known = self.headers.get("Authorization") == "Bearer hf_right"
        if self.path == "/api/whoami-v2":
            self._answer({"name": "me", "type": "user"} if known else {"error": "Invalid credentials"}, 200 if known else 401)
        else:
            self._answer({"error": "Not found"}, 404)

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.address}/me/model", "name": "me/model", "id": "0"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/me/model/preupload/main":
            paths = [each["path"] for each in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif self.path.startswith("/api/models/me/model/commit/main") and not self.server.refuses:
            self.server.commits += 1
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self.server.address}/me/model/commit/0", "commitOid": "0" * 40, "success": True})
        else:
            self._answer({"error": "Storage quota exceeded"}, 403)

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def call(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`mlm export` in a process of its own: huggingface_hub reads its environment when it is imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "mlm_lightning", "export", *arguments]
    return subprocess.run(command, cwd=folder, env=inherited | own | environment, capture_output=True, text=True)


@pytest.mark.parametrize("public", [False, True])
def test_the_hub_gets_the_folder(run: str, tmp_path: Path, hub: Hub, public: bool) -> None:
    flags = ["--public"] if public else []
    done = call(tmp_path, run, "there", "--push", "me/model", *flags, HF_ENDPOINT=hub.address, HF_TOKEN="hf_right")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.address}/me/model\n"
    (created,) = hub.created
    assert (created["name"], created["organization"]) == ("model", "me")
    assert created.get("private", created.get("visibility")) in ((False, "public") if public else (True, "private"))
    assert hub.commits == 1
    here = {str(path.relative_to(tmp_path / "there")): path for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert hub.files == {name: path.read_bytes() for name, path in here.items()}
    assert "hf download me/model --local-dir model" in hub.files["README.md"].decode()

    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in hub.files.items():
        (copy / name).write_bytes(content)
    assert predict(str(copy), ["0 _ 1 2"]) == predict(run, ["0 _ 1 2"])


@pytest.mark.parametrize(
    ("name", "environment", "names"),
    [
        ("me/model", {}, ["not logged in", "hf auth login"]),
        ("me/model", {"HF_TOKEN": "hf_wrong"}, ["--push me/model", "hf auth login"]),
        ("me/model", {"HF_TOKEN": "hf_right", "HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE=1"]),
        ("me/model", {"HF_TOKEN": "hf_right", "HF_ENDPOINT": "http://127.0.0.1:9"}, ["does not answer"]),
        ("model", {"HF_TOKEN": "hf_right"}, ["--push model", "USER/NAME"]),
        ("me/my/model", {"HF_TOKEN": "hf_right"}, ["--push me/my/model", "USER/NAME"]),
        ("me/..", {"HF_TOKEN": "hf_right"}, ["--push me/..", "USER/NAME"]),
        ("", {"HF_TOKEN": "hf_right"}, ["--push", "USER/NAME"]),
    ],
)
def test_what_stands_against_it_is_said_first(
    run: str, tmp_path: Path, hub: Hub, name: str, environment: dict[str, str], names: list[str]
) -> None:
    done = call(tmp_path, run, "there", "--push", name, **({"HF_ENDPOINT": hub.address} | environment))
    assert done.returncode == 2, done.stderr
    assert [name for name in names if name not in done.stderr] == [], done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "there").exists()
    assert [path for path in hub.asked if path != "/api/whoami-v2"] == []


def test_public_needs_a_name(run: str, tmp_path: Path) -> None:
    done = call(tmp_path, run, "there", "--public")
    assert done.returncode == 2
    assert "--push USER/NAME" in done.stderr
    assert not (tmp_path / "there").exists()


def test_what_the_hub_refuses_is_kept(run: str, tmp_path: Path, hub: Hub) -> None:
    hub.refuses = True
    done = call(tmp_path, run, "there", "--push", "me/model", HF_ENDPOINT=hub.address, HF_TOKEN="hf_right")
    assert done.returncode == 2
    assert "the hub refused it" in done.stderr
    assert "hf upload me/model there" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        path.name for path in Path(export(run, tmp_path / "other")).iterdir()
    }
