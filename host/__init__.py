"""The workstation side of Shardwire: ingest, optimise, compress, partition, package, deploy."""
