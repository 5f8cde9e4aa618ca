"""The workstation side of Shardwire: ingest, optimise, compress, partition, package, deploy."""

import edge as edge  # its start keeps onnxruntime from reporting to its vendor
