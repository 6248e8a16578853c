"""Testing: the evaluator, banks of image features, pictures, adversarial image files."""
