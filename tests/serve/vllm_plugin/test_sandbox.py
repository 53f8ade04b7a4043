"""What a decoder process can still reach: it has no network, no other process, and no file but Python's libraries."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client import InputError
from pedcxr_serve.vllm_plugin import sandbox
from pedcxr_serve.vllm_plugin.decoder_process import DecoderPool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in sandbox._CALLS, reason="the sandbox needs Linux"
)
_WORKER = """
import json, os, socket, subprocess, sys
from pedcxr_serve.vllm_plugin import decoder_process
def decode(data):
    found = {}
    for name, code in json.loads(data).items():
        try:
            exec(code, globals())
            found[name] = "allowed"
        except OSError as error:
            found[name] = type(error).__name__
    return {"error": json.dumps(found)}, b""
decoder_process._decode = decode
decoder_process.work()
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with contextlib.closing(DecoderPool((sys.executable, "-P", "-c", _WORKER))) as pool:
        yield pool


def attempts(pool: DecoderPool, **code: str) -> dict[str, Any]:
    """Run each piece of code in a worker, as a decoder that a film has taken over; return what became of it."""
    with pytest.raises(InputError) as caught:
        pool.decode(json.dumps(code).encode())
    outcomes: dict[str, Any] = json.loads(str(caught.value))
    return outcomes


def test_no_network_and_no_socket_of_the_engine(pool: DecoderPool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as engine:
        engine.bind(f"{folder}/engine.sock")
        engine.listen()
        outcomes = attempts(
            pool,
            tcp="socket.create_connection(('127.0.0.1', 9))",
            udp="socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            unix=f"socket.socket(socket.AF_UNIX).connect('{folder}/engine.sock')",
            pair="socket.socketpair()",
            netlink="socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        )
    assert set(outcomes.values()) == {"PermissionError"}, outcomes


def test_no_other_process(pool: DecoderPool) -> None:
    parent = os.getpid()
    outcomes = attempts(
        pool,
        program="subprocess.run(['/bin/true'])",
        signal=f"os.kill({parent}, 0)",
        pidfd=f"os.pidfd_open({parent})",
    )
    assert set(outcomes.values()) == {"PermissionError"}, outcomes


def has_landlock() -> bool:
    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) >= 1


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
def test_no_file_but_the_libraries(pool: DecoderPool, tmp_path: Path) -> None:
    secret = tmp_path / "tenants.toml"
    secret.write_text("secret")
    outcomes = attempts(
        pool,
        tenants=f"open({str(secret)!r})",
        environment=f"open('/proc/{os.getpid()}/environ', 'rb')",
        own_environment="open('/proc/self/environ', 'rb')",
        passwords="open('/etc/passwd')",
        memory=f"open('/proc/{os.getpid()}/mem', 'rb')",
        write=f"open({str(tmp_path / 'new')!r}, 'w')",
        folder=f"os.mkdir({str(tmp_path / 'folder')!r})",
        overwrite=f"open({json.__file__!r}, 'r+')",
    )
    assert set(outcomes.values()) == {"PermissionError"}, outcomes
    assert attempts(pool, library=f"open({json.__file__!r})") == {"library": "allowed"}


def test_environment_of_a_worker_holds_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with contextlib.closing(DecoderPool((sys.executable, "-P", "-c", _WORKER))) as pool:
        code = {name: f"if {name!r} not in os.environ: raise OSError" for name in ("HF_TOKEN", "PATH")}
        assert attempts(pool, **code) == {"HF_TOKEN": "OSError", "PATH": "allowed"}


def test_environment_of_the_launcher_is_hidden_from_its_user() -> None:
    """Root keeps access, so another user reads it here."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    script = (
        "import os, subprocess, sys\nfrom pathlib import Path\nfrom pedcxr_serve.vllm_plugin import sandbox\n"
        "os.setgid(65534); os.setuid(65534); sandbox._libc().prctl(4, 1, 0, 0, 0)\n"
        'read = \'import sys; print(open(sys.argv[1], "rb").read().count(b"PEDCXR_AUDIT_KEY"))\'\n'
        "for hide in (False, True):\n"
        "    sandbox.hide_process() if hide else None\n"
        "    command = [sys.argv[1], '-c', read, f'/proc/{os.getpid()}/environ']\n"
        "    print(subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'denied')\n"
    )
    python = "/usr/bin/python3"
    if not Path(python).exists():
        pytest.skip("needs a Python that every user may run")
    environment = os.environ | {"PEDCXR_AUDIT_KEY": "k" * 32}
    command = [sys.executable, "-c", script, python]
    assert subprocess.check_output(command, env=environment, text=True, timeout=60).split() == ["1", "denied"]


def test_filter_has_a_number_for_every_call_on_each_machine() -> None:
    for machine, (_, numbers) in sandbox._CALLS.items():
        assert set(numbers) == {*sandbox._DENIED, *sandbox._ONLY_SELF}
        assert len(set(numbers.values())) == len(numbers)
        assert len(sandbox._filter(machine, 1)) < 4096
