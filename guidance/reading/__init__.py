"""Reading from a network: what it sees in a given picture."""
