"""Choose the engine settings for a device and estimate its throughput."""
