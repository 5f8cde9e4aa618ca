"""Make a model smaller: what to do (`recipe`), doing it (`quantize`), and what it cost (`measure`)."""
