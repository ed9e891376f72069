"""The rules: pure decisions over plain values, without I/O, clock or ORM."""
