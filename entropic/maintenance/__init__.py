"""Keeping house: is all there that the rows say, and what can go.

What is wrong, and what is to go, is decided here without changing anything. What goes, goes the
way that a store deletes.
"""
