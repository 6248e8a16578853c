"""Tables, curves and the page, made from records alone."""
