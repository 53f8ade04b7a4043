"""Films: read DICOM and plain images, render them to 8-bit grey and encode them."""
