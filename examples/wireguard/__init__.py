"""WireGuard in user space over aiotuntap: a replacement for wireguard-go. README.md says how to run it."""
