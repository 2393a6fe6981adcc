"""Server core and speaker nodes in one process, on virtual time, with faults drawn from one seed.

No thread, no socket, no clock of the machine: the loop jumps to its next timer, the broker and the ways to it are
objects, disks lie in memory, and every chance comes from the seed. The same seed gives the same bytes of trace.
"""
