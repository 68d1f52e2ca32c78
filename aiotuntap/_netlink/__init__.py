"""rtnetlink(7): what an interface is, changing it, watching it. The only importer of pyroute2."""
