"""Seeded generator of small documented Lua 5.4 functions with tests."""
