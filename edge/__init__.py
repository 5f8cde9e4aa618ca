"""The device side of Shardwire: formats, agent and client."""

import os

# The onnxruntime wheel reports to its vendor from the moment it is imported (seen with 1.32: it looks up
# mobile.events.data.microsoft.com) unless this stands in the environment by then.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
