"""A report with the plain `openai` package."""

import base64
from pathlib import Path

import openai

film = base64.b64encode(Path("demo-films/pneumonia-6y.png").read_bytes()).decode()
client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
response = client.chat.completions.create(
    model="pedcxr-demo",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{film}"}},
                {"type": "text", "text": "Generate a radiology report for this chest X-ray of a 6-year-old male."},
            ],
        }
    ],
    max_tokens=500,
    temperature=0,
)
choice = response.choices[0]
if choice.finish_reason != "stop":
    raise SystemExit(f"not a complete report: finish_reason is {choice.finish_reason}")
print(choice.message.content)
