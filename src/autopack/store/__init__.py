"""Every SQL statement, by noun: `get_` raises, `find_` may return None, `lock_` is FOR UPDATE."""
