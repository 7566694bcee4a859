"""The command line, ``entropic``: it reads tables, and needs no model.

What it shows, and what it changes, is done by the modules that a script uses.
"""
