"""What parent and child processes share: lifetime, control channel, sockets."""
