"""What the methods do (effects) and what they take (costs), measured on the bundled models and beside other nodes for the same method."""
