"""What tests of several rooms share: a small world of real pictures, and the command as a user runs it."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from dataflow import mini

HOUSE = Path(__file__).resolve().parent.parent
Interlace = Callable[..., subprocess.CompletedProcess[str]]

WORLD = mini.Sizes(
    cambrian=300,
    metaclip=100,
    instruct_pix2pix=40,
    cambrian_alignment=30,
    llava=30,
    videostar=9,
    sharegptvideo=9,
    captions=30,
    text=40,
    something_something=8,
    howto100m=8,
    visual_cot=20,
    vstar=16,
    aurora=20,
    omniedit=12,
    metaquery_instruct=12,
    sharegpt4video=4,
    mmc4=12,
)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniature corpora of every source in their upstream layouts. Read-only: copy it before you change a row.

    300 rows of cambrian, 4 of them wrong, 100 of metaclip, 40 of instruct_pix2pix; few and clean ones of the others.
    """
    folder = tmp_path_factory.mktemp("world")
    mini.write(folder, rows=WORLD)
    return folder


@pytest.fixture(scope="session")
def interlace() -> Interlace:
    """Run the command in a process of its own; its output is captured as text."""

    def run(*words: str | Path, cwd: Path = HOUSE, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pipelines", *map(str, words)]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
        if expect is not None:
            assert done.returncode == expect, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server in this process, moto's; it holds what it is given in memory."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a fresh, empty bucket, `s3://NAME`; whoever this test starts finds the server by the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # clients remember the environment that they were made in
    bucket = f"bucket-{secrets.token_hex(6)}"
    S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"
