"""Read what a DICOM header states: access to elements, the facts, and the words that headers use."""
