"""A learning Ethernet switch whose ports are TAP interfaces, each in the network namespace of its station.

As root::

    ip netns add red
    ip netns add blue
    python -m examples.switch red:port0 blue:port0

and in a second terminal::

    ip -n red address add 10.0.0.1/24 dev port0
    ip -n blue address add 10.0.0.2/24 dev port0
    ip netns exec red ping 10.0.0.2
    python -m examples.switch.ctl ports
    python -m examples.switch.ctl add green:port0

A port is the network card of whoever lives in its namespace, and there can be as many as you like. One that is given
without a namespace is made where the switch was started. A port that is deleted leaves the others as they are, and one
that is down drops what is meant for it. Ctrl-C ends the switch, which says what each port carried, and the ports go
with it. Then ``ip netns del red; ip netns del blue``.

A port can also be a socket where virtual machines connect (``unix:/tmp/lab``), and ``--vxlan`` reaches other machines.
``--help`` and the how-to say the rest.

Frames pass as the kernels hand them out: TCP segments of up to 64 KiB, checksums unfinished, and in front of each the
10 bytes of virtio_net_hdr that tell the next kernel what is left to do. There is no spanning tree: a loop is noticed
when frames come back, and the port where they do is blocked for a minute.

Read it in this order: `table` (who is where), `guard` (loops and storms) and `core` (where frames go) are pure code;
`ports` and `switch` join it to the kernel; `control` and `ctl` are for looking into it while it runs; `vxlan`, which is pure
again, and `uplink` lead to other machines.
"""
