"""Check films against the intended use before anything is sent."""
