"""What client, server and simulation share. Imports no other room; no I/O beyond parsing, no clock, no global random
state.
"""
