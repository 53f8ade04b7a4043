"""Report the chest films of each study that an Orthanc receives, and store SR and PDF in the same study.

This script runs in Orthanc's Python plugin. It calls the command ``pedcxr`` from another environment, so the plugin's
interpreter needs no packages. A film counts as done once it has a report or the client refused it; metadata 4711 of the
instance says so. Films that failed, for example while the server was down, are tried again with the next change of
their study.
"""

import json
import os
import queue
import subprocess
import tempfile
import threading

import orthanc

DONE = "4711"  # user-defined metadata start at 1024
SETTINGS = json.loads(orthanc.GetConfiguration()).get("Pedcxr", {})
COMMAND = SETTINGS.get("Command", ["pedcxr"])
# The interpreter of the plugin may need variables that would mislead the interpreter of the command.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "LD_LIBRARY_PATH")}
STUDIES = queue.Queue()


def get(path):
    """Return the JSON of a resource."""
    return json.loads(orthanc.RestApiGet(path))


def films(study):
    """Return the instances of CR and DX series that are not done."""
    for series in get(f"/studies/{study}/series"):
        if series["MainDicomTags"].get("Modality") in ("CR", "DX"):
            for instance in series["Instances"]:
                if DONE not in get(f"/instances/{instance}/metadata?numeric"):
                    yield instance


def run(*arguments):
    """Call ``pedcxr``. Raise RuntimeError with its last line if it fails."""
    command = [*COMMAND, *arguments]  # from Orthanc's configuration, without a shell
    completed = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)  # noqa: S603
    if completed.returncode not in (0, 3):  # 3: the client refused some of the films
        raise RuntimeError(completed.stderr.strip().rpartition("\n")[2])


def report(study):
    """Report the films of a study that are not done, and store the documents."""
    instances = list(films(study))
    if not instances:
        return
    with tempfile.TemporaryDirectory(prefix="pedcxr-") as folder:
        source, lines = os.path.join(folder, "films"), os.path.join(folder, "run.jsonl")
        os.mkdir(source)
        for instance in instances:
            with open(os.path.join(source, instance), "wb") as file:
                file.write(orthanc.GetDicomForInstance(instance))
        run("batch", source, "-o", lines, "--url", SETTINGS["Url"], *SETTINGS.get("Arguments", []))
        for name in ("sr", "pdf"):
            target = os.path.join(folder, name)
            run("export", lines, "--format", name, "--films", source, "--copy-identity", "-o", target)
            for document in os.listdir(target):
                with open(os.path.join(target, document), "rb") as file:
                    orthanc.RestApiPost("/instances", file.read())
    for instance in instances:
        orthanc.RestApiPut(f"/instances/{instance}/metadata/{DONE}", b"done")


def work():
    """Report the studies of the queue, one after the other."""
    while True:
        study = STUDIES.get()
        try:
            report(study)
        except Exception as error:  # one study must not stop the others
            orthanc.LogError(f"pedcxr: study {study}: {type(error).__name__}: {error}")


def on_change(change, _level, resource):
    """Queue a stable study. Orthanc waits for this function, so it does no more."""
    if change == orthanc.ChangeType.STABLE_STUDY:
        STUDIES.put(resource)


threading.Thread(target=work, daemon=True).start()
orthanc.RegisterOnChangeCallback(on_change)
