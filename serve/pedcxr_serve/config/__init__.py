"""Configuration: settings, the TOML file, and the vLLM flags that may be added."""
