"""Words and codes that headers use for body parts, species and views. Data only."""
