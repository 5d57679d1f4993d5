"""Small networks that are trained inside the graph."""
