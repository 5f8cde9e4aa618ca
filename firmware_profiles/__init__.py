"""Device profiles as package data: one `<id>.toml` per device class, read by `edge.formats.profile`."""
