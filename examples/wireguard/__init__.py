"""WireGuard in user space over aiotuntap: a drop-in for wireguard-go. See README.md."""
