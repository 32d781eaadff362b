"""The paper's experiments, run again and laid over its own figures."""
