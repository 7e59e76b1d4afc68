"""Images to moments at the pace of the network: decoding before it, checks and files after it."""
