"""pedcxr's server: the launcher, the gateway and the engine plugin."""
