# A report with curl: one image before the text, as a data URL.
{ printf '{"model": "pedcxr-demo", "messages": [{"role": "user", "content": ['
  printf '{"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}}, ' "$(base64 -w0 demo-films/pneumonia-6y.png)"
  printf '{"type": "text", "text": "Generate a radiology report for this chest X-ray of a 6-year-old male."}]}], '
  printf '"max_tokens": 500, "temperature": 0}'
} | curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d @-
