"""Films: DICOM and plain images, read, decoded, rendered to 8-bit grey and encoded."""
