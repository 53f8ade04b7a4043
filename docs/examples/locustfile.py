# Each body of aiperf.jsonl once: locust -f locustfile.py. Locust measures the time of the whole response.
import os
from collections import deque
from pathlib import Path

import gevent
from locust import HttpUser, task
from locust.exception import StopUser

BODIES = deque(Path("aiperf.jsonl").read_bytes().splitlines())
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['PEDCXR_API_KEY']}"}
left = len(BODIES)


class Client(HttpUser):
    @task
    def report(self):
        global left
        if not BODIES:
            raise StopUser
        with self.client.post(
            "/v1/chat/completions", data=BODIES.popleft(), headers=HEADERS, catch_response=True
        ) as response:
            if b"data: [DONE]" not in (response.content or b"") or b'"error"' in response.content:
                response.failure(f"no complete report, status {response.status_code}")
        left -= 1
        if not left:
            gevent.spawn(self.environment.runner.quit)  # quit waits for the users, of which this is one
