"""Runtimes, one file each; `edge.runtimes.table` names them."""
