"""The `shardwire` command: one command a file; `main` names them all."""
