"""Models: the causal LM that trains, the bundled small agent, chat formats."""
