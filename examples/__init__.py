"""Programs built on aiotuntap, each to be read and run."""
