"""What turns bytes into bytes: offload flags, the header, parsing, checksums, segmenting, coalescing. No descriptor, no loop."""
