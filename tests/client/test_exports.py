"""The public names of the package, and the modules that importing it loads."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import subprocess
import sys

import pedcxr_client
from pedcxr_client import AsyncClient, AsyncReportStream, Client, FilmRequest, PedcxrError, ReportStream
from pedcxr_client.request.film_request import FilmOptions

ABSENT = {
    "torch",
    "vllm",
    "transformers",
    "starlette",
    "numpy",
    "pydicom",
    "prometheus_client",
    "asyncio",
    "openai",
    "PIL",
    "pedcxr_serve",
}


def test_all_lists_every_public_name():
    public = {
        name for name, value in vars(pedcxr_client).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert sorted(pedcxr_client.__all__) == sorted(public | {"__version__"})


def test_version_matches_the_distribution():
    assert pedcxr_client.__version__ == importlib.metadata.version("pedcxr")


def test_errors_docstring_lists_every_error_and_exit_code():
    errors = {
        value for value in vars(pedcxr_client).values() if inspect.isclass(value) and issubclass(value, Exception)
    }
    drawing = pedcxr_client.errors.__doc__
    for error in errors:
        line = next(line for line in drawing.splitlines() if f" {error.__name__} " in f" {line} ")
        assert f" {error.exit_code}  " in line + "  ", error
    assert all(issubclass(error, PedcxrError) for error in errors)
    assert len({error.outcome for error in errors}) <= len(errors)


def test_both_clients_have_the_same_methods_and_arguments():
    for sync, other in ((Client, AsyncClient), (ReportStream, AsyncReportStream)):
        names = {name for name in dir(sync) if not name.startswith("_")}
        assert names == {name for name in dir(other) if not name.startswith("_")}
        for name in names - {"openai"}:
            if callable(getattr(sync, name)):
                signatures = [inspect.signature(getattr(client, name)) for client in (sync, other)]
                if name == "reports":  # only the asynchronous client takes an asynchronous iterable
                    signatures = [signature.replace(parameters=()) for signature in signatures]
                assert signatures[0].parameters == signatures[1].parameters, name
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_clients_accept_every_argument_of_a_film_request_except_the_key():
    arguments = {name: kind for name, kind in FilmRequest.__annotations__.items() if name not in ("film", "_", "key")}
    assert FilmOptions.__annotations__.keys() == arguments.keys()
    for name, kind in FilmOptions.__annotations__.items():
        assert getattr(kind, "__forward_arg__", kind) == arguments[name]


def test_import_loads_no_heavy_module_and_starts_no_thread():
    code = "import pedcxr_client, sys, threading, json; print(json.dumps([*sys.modules, threading.active_count()]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *modules, threads = json.loads(output)
    assert not ABSENT & set(modules)
    assert threads == 1


def test_a_report_of_a_png_loads_no_heavy_module(engine, film, tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(film)
    code = (
        "import json, sys; from pedcxr_client import Client\n"
        "with Client(sys.argv[1]) as client: client.report(sys.argv[2])\n"
        "print(json.dumps([*sys.modules]))"
    )
    command = [sys.executable, "-W", "error", "-c", code, engine.url, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not (ABSENT - {"asyncio", "openai", "PIL"}) & set(json.loads(output))
