"""The private folder of a server's socket."""

from __future__ import annotations

import socket as socketlib
import stat
from pathlib import Path

import pytest

from pedcxr_serve.engine.socket_dir import socket_folder
from pedcxr_serve.errors import ConfigError


def test_a_fresh_folder_is_private_and_goes() -> None:
    with socket_folder() as socket:
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        socket.touch()
    assert not socket.parent.exists()


def test_a_chosen_folder_stays_but_is_emptied(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "notes.txt").touch()
    leave_socket(tmp_path / "engine.sock")  # of a server that was killed
    with socket_folder(str(tmp_path)) as socket:
        assert not socket.exists()
        leave_socket(socket)
        leave_socket(tmp_path / "rpc")
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "notes.txt"}


def leave_socket(path: Path) -> None:
    with socketlib.socket(socketlib.AF_UNIX) as bound:
        bound.bind(str(path))


def test_a_folder_that_was_not_there_goes_again(tmp_path: Path) -> None:
    with socket_folder(str(tmp_path / "new")):
        pass
    assert not (tmp_path / "new").exists()


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with socket_folder(str(tmp_path)) as socket:
        socket.touch()
        with pytest.raises(ConfigError, match="held by a server"), socket_folder(str(tmp_path)):
            pass
        assert socket.exists()


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"), socket_folder(str(tmp_path)):
        pass


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"), socket_folder(str(tmp_path / ("x" * 80))):
        pass


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"), socket_folder(str(tmp_path / "file")):
        pass
