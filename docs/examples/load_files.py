# Input files of three load testers: python load_files.py MODEL FOLDER FILM... Nothing is sent.
import json
import sys
from pathlib import Path

from pedcxr_client import Client

model, folder, *films = sys.argv[1:]
with Client(model=model) as client:
    bodies = [client.payload(film, age="6y", sex="M") for film in films]
chats = [json.loads(body)["messages"] for body in bodies]
files = {
    "aiperf.jsonl": bodies,
    "guidellm.jsonl": [json.dumps({"messages": messages}).encode() for messages in chats],
    "vllm.jsonl": [json.dumps({"content": messages[-1]["content"]}).encode() for messages in chats],
}
for name, lines in files.items():
    (Path(folder) / name).write_bytes(b"".join(line + b"\n" for line in lines))
