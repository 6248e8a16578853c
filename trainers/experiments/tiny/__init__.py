"""How the built-in small CLIP was pre-trained and measured."""
