"""The command `l2s`: arguments in, tables or JSON out; no logic."""
