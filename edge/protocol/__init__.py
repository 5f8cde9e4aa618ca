"""What nodes say to each other, without IO, clock or threads: `session` is the agent's, `requests` the client's."""
