"""Configuration: settings, the TOML file, and the permitted vLLM options."""
