"""Offload flags, virtio_net_hdr, parsing, checksums, segmenting and coalescing: all of it without I/O or an event loop."""
