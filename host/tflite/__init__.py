"""TFLite files on the host: read, cut into sub-models, run. The only users of ai_edge_litert here."""
