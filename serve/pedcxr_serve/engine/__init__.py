"""The vLLM process: start, health, supervision."""
