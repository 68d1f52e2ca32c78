"""A learning Ethernet switch. Each port is a TAP interface in the network namespace of its station.

Run it as root, from the root of the repository::

    ip netns add red
    ip netns add blue
    python -m examples.switch red:port0 blue:port0

and in a second terminal::

    ip -n red address add 10.0.0.1/24 dev port0
    ip -n blue address add 10.0.0.2/24 dev port0
    ip netns exec red ping 10.0.0.2
    python -m examples.switch.ctl ports
    ip netns add green
    python -m examples.switch.ctl add green:port0

Press Ctrl-C to end the switch: it prints the counters of each port and removes the ports. Then remove the namespaces:
``ip netns del red; ip netns del blue; ip netns del green``.

A port is the network card of its namespace. There can be any number of ports. A port without a namespace is created in
the namespace of the switch. If a port is deleted, the others continue; if it is down, frames to it are dropped.

A port can also be a Unix socket to which virtual machines connect (``unix:/tmp/lab``). With ``--vxlan``, the switch
reaches other machines. For more, see ``--help`` and "Run a lab on one switch" in docs/howto.md.

Frames pass in the form in which the kernel delivers them: TCP segments of up to 64 KiB, with incomplete checksums, each
behind a virtio_net_hdr of 10 bytes that tells the next kernel what is left to do. There is no spanning tree. Instead, a
loop is detected when frames come back, and the port where they come back is blocked for a minute.

Read the modules in this order: `table` (where each station is), `guard` (loops and storms) and `core` (where frames go)
have no input and output; `ports` and `switch` connect them to the kernel; `control` and `ctl` inspect and change the
running switch; `vxlan` (no input and output) and `uplink` connect other machines.
"""
